"""The build is pyproject.toml's: scikit-build-core compiles the C core with CMake.

``pip install .``, ``pip install -e .`` and ``python -m build`` read pyproject.toml and never run
this file. It is here for those who type ``python setup.py ...``: setuptools knows nothing of the
core, so instead of installing half a package it says what to type.
"""

import sys

_INSTEAD = {
    "install": "pip install .",
    "develop": "pip install -e .",
    "sdist": "python -m build --sdist",
    "bdist_wheel": "python -m build --wheel",
    "build": "python -m build --wheel",
    "build_ext": "pip install --no-build-isolation -e .",
    "test": "make test",
    "clean": "make clean",
}

if __name__ == "__main__":
    commands = [word for word in sys.argv[1:] if not word.startswith("-")]
    command = commands[0] if commands else ""
    sys.exit(
        f"setup.py {command}".rstrip()
        + ": this project is built by scikit-build-core, not by setuptools. Use instead:\n    "
        + _INSTEAD.get(command, "pip install .")
    )
