"""The house: imports point downward only, and what is heavy is loaded when it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudmanager

PACKAGE = Path(cloudmanager.__file__).parent

# From the roof to the ground. A room may import what lies below its floor, and itself; rooms
# of one floor never import each other.
FLOORS: list[set[str]] = [
    {"testing"},  # for who writes a host; nothing else may import it
    {"__main__"},
    {"cli"},
    {"__init__"},  # exports the pool, lazily
    {"manager"},
    {"cache", "catalog", "config"},  # config makes the hosts that the settings name
    {"hosts"},
    {"retry", "progress", "source"},
    {"hashing", "model"},
    {"errors", "_version"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = (
    *("boto3", "botocore", "azure", "obstore", "sqlalchemy", "alembic", "rich", "requests"),
    *("pytest", "_pytest"),
)


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(module: Path) -> str:
    parts = module.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else module.stem


def _imports(module: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of the package that a module imports, also lazily."""
    package = ("cloudmanager", *module.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            for alias in node.names:
                yield node.lineno, f"{name}.{alias.name}"


@pytest.mark.parametrize("module", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward_only(module: Path) -> None:
    room = _room(module)
    assert room in FLOOR, f"{room} has no floor in this test's plan of the house"
    for line, name in _imports(module):
        parts = name.split(".")
        if parts[0] != "cloudmanager":
            continue
        target = parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__"
        if len(parts) > 1 and parts[1] == "__version__":
            target = "_version"
        assert target == room or FLOOR[target] > FLOOR[room], (
            f"{module.relative_to(PACKAGE)}:{line} imports {name} from above or beside it"
        )


def test_the_plan_of_the_house_names_no_room_that_is_gone() -> None:
    assert set(FLOOR) == {_room(module) for module in _modules()}


def test_errors_import_nothing_of_the_package() -> None:
    names = [name for _, name in _imports(PACKAGE / "errors.py")]
    assert not [name for name in names if name.startswith("cloudmanager")]


def test_only_the_catalog_knows_sql_and_only_hosts_know_sdks() -> None:
    for module in _modules():
        room = _room(module)
        for line, name in _imports(module):
            where = f"{module.relative_to(PACKAGE)}:{line} imports {name}"
            top = name.split(".")[0]
            assert top not in ("sqlalchemy", "alembic") or room == "catalog", where
            assert top not in ("boto3", "botocore", "azure", "obstore") or room == "hosts", where
            assert top not in ("click", "rich") or room == "cli", where
            assert top != "pytest" or room == "testing", where


def test_only_the_configuration_reads_the_environment() -> None:
    allowed = {
        "config.py",
        "hosts/azure_account.py",  # the variables that the Azure command line reads
        "hosts/s3_access.py",  # the variables that boto3 reads
    }
    for module in _modules():
        name = str(module.relative_to(PACKAGE))
        source = module.read_text(encoding="utf-8")
        reads = any(
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "getenv", "environb")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            for node in ast.walk(ast.parse(source))
        )
        assert not reads or name in allowed, f"{name} reads the environment"


def _loaded_by(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "program",
    [
        "import cloudmanager",
        "import cloudmanager.config, cloudmanager.errors, cloudmanager.hosts",
        "import sys, contextlib\n"
        "from cloudmanager.cli.app import run\n"
        "sys.argv = ['cloudmanager', '--help']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    run()",
    ],
    ids=["import", "ground floor", "--help"],
)
def test_nothing_heavy_is_loaded_before_it_is_used(program: str) -> None:
    loaded = _loaded_by(program)
    assert "cloudmanager" in loaded
    assert not loaded & set(HEAVY)


def test_what_is_exported() -> None:
    assert set(cloudmanager.__all__) == {"CloudManager", "UploadResult", "__version__"}
    for name in cloudmanager.__all__:
        assert getattr(cloudmanager, name)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        cloudmanager.nothing_like_it  # noqa: B018


def test_every_public_name_of_a_module_exists_and_is_listed_once() -> None:
    for module in _modules():
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names = ast.literal_eval(node.value)
                assert len(names) == len(set(names)), module
                assert set(names) <= _defined(tree), (module, set(names) - _defined(tree))


def _defined(tree: ast.Module) -> set[str]:
    names: set[str] = {"CloudManager", "UploadResult"} if _is_lazy(tree) else set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _is_lazy(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)


def test_every_error_is_part_of_the_drawn_tree() -> None:
    from cloudmanager import errors

    assert errors.__doc__
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.CloudManagerError)
        assert name in errors.__doc__
