"""The methods paragraph of a paper that uses the toolkit, and the references it cites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subnet._version import __version__

if TYPE_CHECKING:
    from subnet.analysis.pipeline import Analysis
    from subnet.subnetwork import Subnetwork

BIBTEX = """\
@article{dekker2007sensitivity,
  author  = {Dekker, David and Krackhardt, David and Snijders, Tom A. B.},
  title   = {Sensitivity of {MRQAP} Tests to Collinearity and Autocorrelation Conditions},
  journal = {Psychometrika}, volume = {72}, number = {4}, pages = {563--581}, year = {2007},
  doi     = {10.1007/s11336-007-9016-1}
}
@article{benjamini1995controlling,
  author  = {Benjamini, Yoav and Hochberg, Yosef},
  title   = {Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing},
  journal = {Journal of the Royal Statistical Society: Series B}, volume = {57}, number = {1},
  pages   = {289--300}, year = {1995}
}
@inproceedings{chaudhry2018riemannian,
  author    = {Chaudhry, Arslan and Dokania, Puneet K. and Ajanthan, Thalaiyasingam and Torr, Philip H. S.},
  title     = {Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence},
  booktitle = {ECCV}, year = {2018}, eprint = {1801.10112}, archiveprefix = {arXiv}
}
@inproceedings{lopezpaz2017gradient,
  author    = {Lopez-Paz, David and Ranzato, Marc'Aurelio},
  title     = {Gradient Episodic Memory for Continual Learning},
  booktitle = {NeurIPS}, year = {2017}, eprint = {1706.08840}, archiveprefix = {arXiv}
}
@inproceedings{hu2022lora,
  author    = {Hu, Edward J. and others},
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  booktitle = {ICLR}, year = {2022}, eprint = {2106.09685}, archiveprefix = {arXiv}
}
@article{blondel2008fast,
  author  = {Blondel, Vincent D. and Guillaume, Jean-Loup and Lambiotte, Renaud and Lefebvre, Etienne},
  title   = {Fast Unfolding of Communities in Large Networks},
  journal = {Journal of Statistical Mechanics: Theory and Experiment}, year = {2008},
  doi     = {10.1088/1742-5468/2008/10/P10008}
}
@inproceedings{ansell2022composable,
  author    = {Ansell, Alan and Ponti, Edoardo Maria and Korhonen, Anna and Vuli{\\'c}, Ivan},
  title     = {Composable Sparse Fine-Tuning for Cross-Lingual Transfer},
  booktitle = {ACL}, year = {2022}, doi = {10.18653/v1/2022.acl-long.125}
}
@inproceedings{michel2019sixteen,
  author    = {Michel, Paul and Levy, Omer and Neubig, Graham},
  title     = {Are Sixteen Heads Really Better than One?},
  booktitle = {NeurIPS}, year = {2019}, eprint = {1905.10650}, archiveprefix = {arXiv}
}
@inproceedings{tang2024language,
  author    = {Tang, Tianyi and others},
  title     = {Language-Specific Neurons: The Key to Multilingual Capabilities in Large Language Models},
  booktitle = {ACL}, year = {2024}, eprint = {2402.16438}, archiveprefix = {arXiv}
}
@inproceedings{sung2021training,
  author    = {Sung, Yi-Lin and Nair, Varun and Raffel, Colin},
  title     = {Training Neural Networks with Fixed Sparse Masks},
  booktitle = {NeurIPS}, year = {2021}, eprint = {2111.09839}, archiveprefix = {arXiv}
}
@inproceedings{molchanov2019importance,
  author    = {Molchanov, Pavlo and others},
  title     = {Importance Estimation for Neural Network Pruning},
  booktitle = {CVPR}, year = {2019}, eprint = {1906.10771}, archiveprefix = {arXiv}
}
@inproceedings{sun2024simple,
  author    = {Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  title     = {A Simple and Effective Pruning Approach for Large Language Models},
  booktitle = {ICLR}, year = {2024}, eprint = {2306.11695}, archiveprefix = {arXiv}
}
@misc{kokhlikyan2020captum,
  author = {Kokhlikyan, Narine and others},
  title  = {Captum: A Unified and Generic Model Interpretability Library for {PyTorch}},
  year   = {2020}, eprint = {2009.07896}, archiveprefix = {arXiv}
}
@inproceedings{pruthi2020estimating,
  author    = {Pruthi, Garima and Liu, Frederick and Kale, Satyen and Sundararajan, Mukund},
  title     = {Estimating Training Data Influence by Tracing Gradient Descent},
  booktitle = {NeurIPS}, year = {2020}, eprint = {2002.08484}, archiveprefix = {arXiv}
}
"""  # noqa: E501 - references are data


#: Method of extraction to what its masks hold, the share left open.
_SELECTED = {
    "magnitude": "the {share} of the weights with the largest absolute change {within} (Ansell et "
    "al., 2022)",
    "fisher": "the {share} of the weights with the largest diagonal Fisher information {within} "
    "(Sung et al., 2021)",
    "taylor": "the {share} of the weights with the largest mean absolute product of gradient and "
    "weight {within} (Molchanov et al., 2019)",
    "wanda": "the {share} of the weights with the largest product of magnitude and input norm "
    "{within} (Sun et al., 2024)",
}

#: Method of extraction of units, and what is said of it.
_UNITS = {
    "head-pruning": "The subnetwork of a language holds the attention heads that are left when the "
    "least important, by the mean over examples of the absolute gradient at their gates, are "
    "dropped round by round (Michel et al., 2019)",
    "attribution": "The subnetwork of a language holds the {units}s of largest mean absolute "
    "{attribution} attribution (Kokhlikyan et al., 2020)",
    "lape": "The subnetwork of a language holds the feed-forward neurons of lowest activation "
    "probability entropy over languages that fire for it (Tang et al., 2024)",
    "directions": "The subnetwork of a language holds the singular directions of its update, and "
    "those of others of which its own subspace captures a share of at least {min_captured} (more "
    "than by chance, q ≤ {alpha})",
    "random": "The subnetwork of a language is a random draw of weights",
}

_WITHIN = {
    "global": "over the whole model",
    "module": "in each module",
    "row": "in each row of a weight matrix",
}


def _subnetworks_sentence(first: Subnetwork) -> str:
    settings = first.settings
    if first.method in _UNITS:
        return _UNITS[first.method].format_map({**settings}) + "."
    if first.method not in _SELECTED:
        return f"The subnetworks of the languages were given (found by {first.method})."
    what = _SELECTED[first.method].format(
        share=f"{100 * settings['density']:g} %", within=_WITHIN[settings.get("scope", "global")]
    )
    on = ""
    if "n_examples_used" in settings:
        on = f", on up to {settings['n_examples']} examples each (seed {settings['seed']})"
    return f"The subnetwork of a language holds {what}{on}."


def _influence_sentence(settings: Mapping[str, Any]) -> str:
    return (
        "Influence of training examples on test examples is TracIn (Pruthi et al., 2020): the "
        "product of their loss gradients at the end of the stage that trained on the example, "
        "times the summed learning rate of that stage, on up to "
        f"{settings['n_train']} training and {settings['n_test']} test examples of each language; "
        f"shares are among the {settings['top']} largest positive, or most negative, scores of a "
        "test example, their p-values from shuffled languages of the training examples and "
        "corrected over the pairs of a measure."
    )


def methods_paragraph(analysis: Analysis) -> str:
    """What was done, in the words of a methods section, with the settings of this analysis."""
    settings = analysis.provenance.settings
    parts = [f"Analyses were run with subnet-toolkit {__version__}."]
    if analysis.subnetworks:
        parts.append(_subnetworks_sentence(analysis.subnetworks[0]))
    if "masks" in analysis.overlaps:
        parts.append(
            "Overlap of masks was compared with a structure-preserving null model, in which the "
            "rows and the columns of each module of one mask are permuted (exact moments, Pearson "
            "type III tail)."
        )
    if "updates" in analysis.overlaps:
        parts.append(
            "Overlap of updates was computed from their low-rank factors (Hu et al., 2022) and "
            "compared with a structure-preserving null model: for the cosine, random signs of the "
            "rows of one update (normal tail); for subspaces, random signs of the coordinates of "
            "one (exact moments, beta tail); for principal angles, independent random rotations."
        )
    if analysis.influence is not None:
        parts.append(_influence_sentence(analysis.influence.provenance.settings))
    if analysis.forgetting is not None:
        parts.append(
            "Forgetting and transfer follow Chaudhry et al. (2018) and Lopez-Paz and Ranzato "
            "(2017); the immediate effect of training a language on another is the difference of "
            "the other's scores before and after that stage."
        )
    parts += [one.methods for one in analysis.additions.values() if one.methods]
    if analysis.relation is not None:
        controls = analysis.relation.provenance.settings.get("controls", [])
        related = ["overlap"] + ["influence"] * (analysis.influence is not None)
        if any(one.representations for one in analysis.additions.values()):
            related.append("similarity of representations in the base")
        listed = ", ".join(related[:-1]) + " and " * (len(related) > 1) + related[-1]
        predictors = f"{listed.capitalize()} {'were' if len(related) > 1 else 'was'}"
        given = f" given {', '.join(name.replace('_', ' ') for name in controls)}" * bool(controls)
        parts.append(
            f"{predictors} related to immediate effects "
            f"({settings['metric']}) by multiple regression quadratic assignment with double "
            f"semi-partialing (Dekker et al., 2007){given}, with at most "
            f"{settings['n_permutations']} permutations of the languages (seed "
            f"{analysis.provenance.seed})."
        )
    parts.append(
        "p-values were corrected after Benjamini and Hochberg (1995): of overlap over the pairs of "
        "a run, measure and level; of the relation over all predictors, measures and modules."
    )
    return " ".join(parts)
