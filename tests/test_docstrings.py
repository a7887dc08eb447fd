"""Every example in the docstring of a public name, or of its methods, runs as it stands and prints what it says."""

import doctest
import inspect
from types import ModuleType

import matplotlib.pyplot as plt
import pytest

import meanfield as mf
import solvers
from meanfield.network import activations
from meanfield.problem import losses

PARSER = doctest.DocTestParser()


def documented():
    """(full name, docstring) of public names and of what public classes define"""
    for package in (mf, solvers, mf.plot):
        for name in package.__all__:
            found = getattr(package, name)
            if isinstance(found, ModuleType):
                continue
            inner = vars(found) if inspect.isclass(found) else {}
            for member, value in {"": found, **inner}.items():
                if text := getattr(value, "__doc__", None) if member != "__doc__" else None:
                    yield f"{package.__name__}.{name}.{member}".rstrip("."), text


EXAMPLES = {name: text for name, text in documented() if PARSER.get_examples(inspect.cleandoc(text))}


# Names that no program writes down: what they are raised by cannot be shown in an example
WITHOUT = {
    "solvers.Interrupted": "by Ctrl-C",
    "solvers.NonFiniteError": "caught like DivergedError, which has one",
    "solvers.RankLost": "by the loss of another process",
}


def failures(name, text):
    """How many lines printed something else, and what"""
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(PARSER.get_doctest(inspect.cleandoc(text), {}, name, None, None), out=said.append)
    return runner.failures, "".join(said)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write pictures
    for module in (activations, losses):  # some register names, which other tests should not meet
        monkeypatch.setattr(module, "_KNOWN", dict(module._KNOWN))
    count, said = failures(name, EXAMPLES[name])
    plt.close("all")
    assert count == 0, said


def test_every_public_name_has_an_example():
    """Of its own: those of methods do not count"""
    names = {f"{package.__name__}.{name}" for package in (mf, solvers, mf.plot) for name in package.__all__} - {
        "meanfield.plot"
    }
    assert names - set(EXAMPLES) == set(WITHOUT)


def test_a_wrong_example_is_found():
    assert failures("wrong", ">>> 1 + 1\n3")[0] == 1
