"""Who may import whom (ARCHITECTURE.md), and what no file may import."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(ROOT.glob("jaxseg/**/*.py"))
LOW = (
    "data",
    "losses",
    "metrics",
    "optim",
    "parallel",
    "checkpoint",
    "resize",
    "windows",
    "flops",
    "labels",
)
ABOVE = ("tools", "tasks", "cli", "build", "config", "model_dir", "model", "foreign")
ONLY_IN = {  # files, or folders below jaxseg
    "orbax": {"checkpoint.py"},
    "ml_collections": {"config.py", "build", "cli.py", "model_dir.py"},
    "tensorflow_datasets": {"__init__.py", "builder.py", "imagenet2012.py", "prepare_data.py"},
    "tensorflow": set(),
    "torch": set(),
}


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "jaxseg").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    used = imports(path)
    above = ("jaxseg.build", "jaxseg.tools", "jaxseg.config", "jaxseg.cli", "train", "eval")
    if part(path) in LOW:
        above += ("jaxseg.models", "jaxseg.training", "jaxseg.inference", "jaxseg.convert")
    if part(path) == "models":
        above += ("jaxseg.data", "jaxseg.training", "jaxseg.inference", "jaxseg.convert")
    if part(path) not in ABOVE:
        assert not [name for name in used if name.startswith(above)]
    for package, allowed in ONLY_IN.items():
        if not {path.name, part(path)} & allowed:
            assert not [name for name in used if name.split(".")[0] == package]


def test_methods_import_gates_alone_of_models():
    for path in ROOT.glob("jaxseg/methods/*.py"):
        used = {name for name in imports(path) if name.startswith("jaxseg.models")}
        assert all(name.startswith("jaxseg.models.gates") for name in used), path.name


def test_pmap_is_said_in_one_file():
    said = [path.name for path in FILES if "jax.pmap" in path.read_text()]
    assert said == ["parallel.py"]
