"""The hand-written stub names what the extension has, and nothing else."""

import ast
from pathlib import Path

import ai_model_optimizations
from ai_model_optimizations import _core


def stub_names(nodes: list[ast.stmt]) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in nodes if isinstance(node, kinds)}


def module_names(value: object) -> set[str]:
    return {name for name in vars(value) if not name.startswith("_")}


def test_stub_and_module_have_the_same_names() -> None:
    stub = Path(ai_model_optimizations.__file__).with_name("_core.pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    typed_dicts = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "TypedDict" for base in node.bases)
    }
    assert stub_names(tree.body) - typed_dicts == module_names(_core)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name not in typed_dicts:
            members = {name for name in stub_names(node.body) if not name.startswith("_")}
            members |= {
                statement.target.id
                for statement in node.body
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            }
            assert members == module_names(getattr(_core, node.name))


def test_every_public_name_can_be_imported() -> None:
    for name in ai_model_optimizations.__all__:
        assert getattr(ai_model_optimizations, name) is not None
    assert set(ai_model_optimizations.__all__) <= set(dir(ai_model_optimizations))
