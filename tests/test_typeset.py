"""Formulas of docs/equations.md become TeX: indices, roots, words, rows; each has as many opening as closing brackets."""

import importlib.util
import re

import pytest

from tests.running import ROOT

SPEC = importlib.util.spec_from_file_location("typeset", ROOT / "docs" / "typeset.py")
typeset = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(typeset)
PAGE = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("plain", "made"),
    [
        ("h^{l+1} = ω W^l φ(h^l) / √N", r"h^{l+1} = ω W^{l} φ(h^{l}) / \sqrt{N}"),
        ("√(1−r) y + β₀²", r"\sqrt{1−r} y + β_{0}^{2}"),
        ("Σ_μ Δ_μ φ(h_rμ) x̃_μ", r"\sum _{μ} Δ_{μ} φ(h_{rμ}) \tilde{x}_{μ}"),
        ("Σ^l(x, x) ≥ tiny if β₀ = 0", r"Σ^{l}(x, x) ≥ ~\text{tiny if}~ β_{0} = 0"),
        ("K_*X N* + K_**", "K_{*X} N^{*} + K_{**}"),
        ("v_i v_iᵀ (y − f_0(X))", r"v_{i} v_{i}^{\mathsf{T}} (y − f_{0}(X))"),
        ("v_iᵀ Σ v_i", r"v_{i}^{\mathsf{T}} Σ v_{i}"),
        ("b ~ N(0, σ*² c_j²)", r"b \sim N(0, σ^{*2} c_{j}^{2})"),
        ("N^(−1/2) exp(h) .. [x]^½", r"N^{−1/2} \operatorname{exp}(h) \ldots [x]^{\tfrac{1}{2}}"),
    ],
)
def test_formulas(plain, made):
    assert typeset.tex(plain) == made


def test_prose_gets_indices_and_code_keeps_its_underscores():
    text = "h^{l+1} of κ_a, A_k², |f|_K, σ*² N*, `weight_std`, weight_std, 10^−13, N^-1/2 and h^L_r"
    expected = (
        "h<sup>l+1</sup> of κ<sub>a</sub>, A<sub>k</sub>², |f|<sub>K</sub>, σ\\*² N*, `weight_std`, weight_std, "
        "10<sup>−13</sup>, N<sup>-1/2</sup> and h<sup>L</sup><sub>r</sub>"
    )
    assert typeset.prose(text) == expected


def test_every_display_has_its_brackets_and_its_alignment():
    displays = [made for block in typeset.BLOCK.findall(PAGE) if (made := typeset.formula(block)) != block]
    assert len(displays) > 40
    for made in displays:
        body = made.partition("aligned}\n")[2].partition("\n\\end")[0]
        assert made.count("{") == made.count("}"), made
        assert not re.search(r"\^\{[^{}]*\}\^|_\{[^{}]*\}_", made), made  # two exponents of one base
        assert [row.count("&") for row in body.split("\\\\\n")] == [1] * (body.count("\\\\\n") + 1), made
