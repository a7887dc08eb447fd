"""Every example in the docstring of a public name, or of its methods, runs as it stands and prints what it says."""

import doctest
import inspect
from types import ModuleType

import pytest

import meanfield as mf
import solvers

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


def failures(name, text):
    """How many lines printed something else, and what"""
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(PARSER.get_doctest(inspect.cleandoc(text), {}, name, None, None), out=said.append)
    return runner.failures, "".join(said)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name):
    count, said = failures(name, EXAMPLES[name])
    assert count == 0, said


def test_the_names_that_most_programs_use_have_examples():
    first = {
        "Problem",
        "Network",
        "Architecture",
        "Training",
        "digits",
        "mean_field",
        "deviation",
        "nngp_and_ntk",
        "save",
    }
    verbs = {
        "WassersteinFlow",
        "CausalDMFT",
        "TangentKernelLimit",
        "FiniteWidth",
        "width_sweep",
        "residual",
        "coordinate_check",
    }
    assert {f"meanfield.{name}" for name in first} | {f"solvers.{name}" for name in verbs} <= set(EXAMPLES)


def test_a_wrong_example_is_found():
    assert failures("wrong", ">>> 1 + 1\n3")[0] == 1
