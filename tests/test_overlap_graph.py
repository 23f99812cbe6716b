import json
import math

import networkx as nx
import numpy as np
import pytest

from overlap_things import SHAPES, adapter, adapters, mask, mask_of
from subnet.overlap import measure_overlap, write_graph

NAME = next(iter(SHAPES))


def grouped_masks():
    """de, nl, sv share a core; ru, uk, bg another; ko has none; x0 is a label of the user's own."""
    rng = np.random.default_rng(3)
    cores = [{name: rng.random(shape) < 0.03 for name, shape in SHAPES.items()} for _ in range(2)]
    groups = {"de": 0, "nl": 0, "sv": 0, "ru": 1, "uk": 1, "bg": 1, "ko": None, "x0": None}
    masks = []
    for seed, (label, group) in enumerate(groups.items()):
        own = mask_of(adapter("x", seed=seed))
        arrays = {name: own.dense(name) for name in SHAPES}
        if group is not None:
            arrays = {name: array | cores[group][name] for name, array in arrays.items()}
        masks.append(mask(label, arrays))
    return masks


@pytest.fixture(scope="module")
def overlap():
    return measure_overlap(grouped_masks())


def test_edges_are_the_planted_groups_and_communities_find_them(overlap):
    graph = overlap.graph("jaccard")
    groups = [{"de", "nl", "sv"}, {"ru", "uk", "bg"}]
    planted = {frozenset((a, b)) for group in groups for a in group for b in group if a != b}
    assert {frozenset(edge) for edge in graph.edges} == planted
    communities = nx.get_node_attributes(graph, "community")
    for group in groups:
        assert len({communities[label] for label in group}) == 1
    assert len(set(communities.values())) == 4


def test_an_edge_needs_a_small_q_and_a_value_above_chance_under_the_structure_null(overlap):
    graph = overlap.graph("jaccard", alpha=0.01)
    for _, _, edge in graph.edges(data=True):
        assert edge["q"] < 0.01
        assert edge["value"] > edge["expected"]
        assert edge["weight"] == edge["value"]
    everything = overlap.graph("jaccard", all_edges=True)
    assert everything.number_of_edges() == 8 * 7 / 2


def test_independent_adapters_have_no_edges_and_each_is_its_own_community():
    graph = measure_overlap([mask_of(u) for u in adapters(6, seed=77)]).graph()
    assert graph.number_of_edges() == 0
    assert sorted(nx.get_node_attributes(graph, "community").values()) == list(range(6))


def test_nodes_carry_what_is_known_of_the_language(overlap):
    graph = overlap.graph(families={"ru": "Slavic"})
    assert graph.nodes["ru"] == {
        "label": "ru", "family": "Slavic", "tag": "ru", "name": "Russian", "script": "Cyrl",
        "script_name": "Cyrillic", "community": graph.nodes["ru"]["community"],
    }  # fmt: skip
    assert set(graph.nodes["x0"]) == {"label", "community"}


def test_containment_is_a_directed_graph(overlap):
    graph = overlap.graph("containment", all_edges=True)
    assert graph.is_directed()
    assert graph.number_of_edges() == 8 * 7


def test_a_small_angle_is_a_strong_tie():
    one = adapter("de", seed=1)
    things = [one, type(one)("x1", one.weights), adapter("fi", seed=4)]
    graph = measure_overlap(things).graph("principal_angle", all_edges=True)
    assert graph.edges["de", "x1"]["weight"] == pytest.approx(math.pi / 2, abs=1e-3)
    assert graph.edges["de", "x1"]["weight"] > graph.edges["de", "fi"]["weight"]
    assert set(measure_overlap(things).graph().edges) == {("de", "x1")}


@pytest.mark.parametrize("measure", ["jaccard", "containment"])
def test_files_are_read_back_by_networkx_and_hold_no_none(overlap, measure, tmp_path):
    graph = overlap.graph(measure)
    graphml, node_link = write_graph(graph, tmp_path, measure)
    assert (graphml.name, node_link.name) == (f"{measure}.graphml", f"{measure}.json")
    content = json.loads(node_link.read_text())
    from_json = nx.node_link_graph(content, edges="edges")
    for back in (nx.read_graphml(graphml), from_json):
        assert back.is_directed() == graph.is_directed()
        assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
        assert nx.utils.edges_equal(
            back.edges(data=True), graph.edges(data=True), directed=graph.is_directed()
        )
    attributes = [content["graph"], *content["nodes"], *content["edges"]]
    assert all(v is not None and v == v for entry in attributes for v in entry.values())


def test_undefined_pairs_have_no_edge_and_no_attribute_is_undefined(tmp_path):
    full = np.ones((4, 4), dtype=bool)
    empty = np.zeros((4, 4), dtype=bool)
    overlap = measure_overlap(
        [mask("de", {NAME: full}), mask("fr", {NAME: empty}), mask("it", {NAME: empty}),
         mask("ru", {NAME: full})]
    )  # fmt: skip
    graph = overlap.graph("jaccard", all_edges=True)
    assert not graph.has_edge("fr", "it")
    assert graph.edges["de", "ru"] == {"value": 1.0, "expected": 1.0, "weight": 1.0}
    write_graph(graph, tmp_path, "jaccard")


def test_communities_do_not_depend_on_the_order_of_calls(overlap):
    first, second = (overlap.graph(seed=5).nodes(data="community") for _ in range(2))
    assert dict(first) == dict(second)
