"""Which languages share parameters, beyond chance and up to what a second seed shares?

python examples/which_languages_share.py demo graph.svg
"""

import sys

import matplotlib.pyplot as plt
import networkx as nx

import subnet

checkpoint = subnet.open_checkpoint(sys.argv[1])
subnetworks = subnet.extract(checkpoint, method="magnitude", density=0.05)
overlap = subnet.measure_overlap(subnetworks)

print(f"chance {overlap.floor('jaccard'):.3f}, another seed {overlap.ceiling('jaccard'):.3f}")
pairs = overlap.pairs("jaccard")
for pair in pairs.nlargest(5, "value").itertuples():
    print(f"{pair.language_a} {pair.language_b}  {pair.value:.3f}  q = {pair.q_value:.2g}")

graph = overlap.graph(measure="jaccard")
if len(sys.argv) > 2:
    widths = [40 * value for _, _, value in graph.edges(data="value")]
    nx.draw_networkx(graph, nx.spring_layout(graph, seed=0), width=widths, node_color="lightblue")
    plt.savefig(sys.argv[2])
