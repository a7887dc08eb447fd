"""Keys say their kind and layer, equal their printed form, and come back from it, from pickles and from files."""

import pickle
from dataclasses import replace

import pytest
import torch

import meanfield as mf
from meanfield.network.keys import ByKey, Key, parts
from meanfield.solution.two_time import TwoTimeResponse
from solvers import FiniteWidth

PRINTED = {
    "Phi1": ("Phi", 1),
    "G12": ("G", 12),
    "h[1]": ("h", "1"),
    "Phi[blocks.0.mix]": ("Phi", "blocks.0.mix"),
    "A[my_layer]": ("A", "my_layer"),
    "B[a[0]]": ("B", "a[0]"),
}


@pytest.mark.parametrize("printed", PRINTED)
def test_a_key_equals_its_printed_form_and_comes_back_from_it(printed):
    key = Key(*PRINTED[printed])
    for same in (key, Key.of(printed), Key.of(key), pickle.loads(pickle.dumps(key))):
        assert same == printed
        assert hash(same) == hash(printed)
        assert f"{same}" == printed
        assert (same.kind, same.layer) == parts(printed) == PRINTED[printed]


@pytest.mark.parametrize("text", ["f", "f_test", "tangent_kernel", "1", "Phi", "Phi[]", "Phi1 ", "Phi[a", "[a]"])
def test_other_texts_are_no_keys(text):
    assert parts(text) == (text, None)
    with pytest.raises(ValueError, match="names no layer: give a kind and a layer"):
        Key.of(text)


def test_what_was_not_recorded_is_refused_with_what_was():
    found = ByKey("kernel", {"Phi1": 1, "G1": 2}, "give snapshots")
    assert found["Phi1"] == found[Key("Phi", 1)] == 1
    assert found.get("Phi2") is None
    assert "Phi2" not in found
    assert [(key.kind, key.layer) for key in found] == [("Phi", 1), ("G", 1)]
    for kind in (KeyError, ValueError):
        with pytest.raises(kind, match=r"^no kernel 'Phi2': recorded are Phi1, G1; give snapshots$"):
            found["Phi2"]
    with pytest.raises(KeyError, match="recorded are none"):
        ByKey("kernel", {}, "give snapshots")["Phi1"]


def test_a_solution_with_named_layers_comes_back_from_its_file(tmp_path, tiny_problem):
    net = FiniteWidth(width=6)(tiny_problem.with_steps(1))

    def named(records):
        return {Key(Key.of(k).kind, "blocks.0.my_mix"): v for k, v in records.items()}

    response = TwoTimeResponse(*torch.randn(2, 2, 3, 4), instant=True)
    solution = replace(
        net,
        kernels=named(net.kernels),
        fields=named(net.fields),
        responses={"B[blocks.0.my_mix]": response},
        tangent=None,
    )
    assert list(solution.kernels) == ["Phi[blocks.0.my_mix]", "G[blocks.0.my_mix]"]
    found = mf.load(mf.save(solution, tmp_path / "named.nc"))
    assert found == solution
    assert {key.layer for key in (*found.kernels, *found.fields, *found.responses)} == {"blocks.0.my_mix"}
