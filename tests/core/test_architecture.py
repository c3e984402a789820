"""Imports are the architecture: who may import whom, what may never be imported, and how large a file may grow."""

import ast
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from iclr18cli.manager import OFFERS, plugins
from iclr18cli.plugin import resolve

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "iclr18cli").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
EVERYTHING = [*CORE, *PLUGINS, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

HEAVY = {"torch", "numpy", "scipy", "matplotlib", "sklearn", "torchattacks", "PIL", "h5py", "safetensors"}
NEVER = {"torchvision", "click", "requests", "dill", "cloudpickle", "joblib"}
LAYERS = (
    {"errors", "plugin", "console", "time_limit", "health"},
    {"paths", "settings", "subject", "hookspecs", "records"},
    {"manager", "config", "presets", "device", "launch", "spawn", "lazy"},
    {"run"},
    {"attack", "certify", "report", "text", "compression", "generate", "models", "data"},
    {"call", "execute", "api"},
    {"command"},
    {"commands", "cli", "__main__", "testing", "conformance"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LATE = {
    # What a loop offers in one call, imported inside the method that needs it.
    ("run", "models"), ("run", "data"),
}  # fmt: skip
"""(from, to) pairs that may go upwards, inside functions only."""


def name_of(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Yield (module, inside a function or under TYPE_CHECKING) for every import statement, absolute names."""

    def walk(node, late):
        for child in ast.iter_child_nodes(node):
            inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inside = True
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
            else:
                yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def part_of(module):
    """The part of the core a module belongs to: `iclr18cli.run.loop` -> `run`."""
    return module.split(".")[1] if "." in module else ""


def test_the_reader_of_imports_sees_what_is_there(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\n"
        "def f():\n    import g\n    class H:\n        from i import j\nclass K:\n    import l\n"
    )
    assert list(imports(file)) == [
        ("a.b", False), ("c.d", False), ("e", True), ("g", True), ("i.j", True), ("l", False),
    ]  # fmt: skip


def test_the_core_never_imports_a_plugin():
    packages = {path.parent.name for path in PLUGINS}
    found = [(str(p), m) for p in CORE for m, _ in imports(p) if m.split(".")[0] in packages or "iclr18_" in m]
    assert packages
    assert found == []


def test_no_plugin_imports_another_plugin():
    packages = {path.relative_to(ROOT / "plugins").parts[0] for path in PLUGINS}
    for path in PLUGINS:
        own = path.relative_to(ROOT / "plugins").parts[0]
        others = {
            m
            for m, _ in imports(path)
            if m.split(".")[0] in packages - {own} or (m.startswith("iclr18_") and m.split(".")[0] != own)
        }
        assert not others, path


def test_plugins_import_no_command_line_code():
    forbidden = {"cli", "commands", "lazy", "execute", "manager", "hookspecs"}
    found = [
        (path.name, m)
        for path in PLUGINS
        for m, _ in imports(path)
        if (m.startswith("iclr18cli.") and part_of(m) in forbidden)
        or m.split(".")[0] in ("typer", "argparse", "pluggy")
    ]
    assert found == []


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_what_is_never_imported(path):
    assert not {m for m, _ in imports(path) if m.split(".")[0] in NEVER}


def test_no_pickle_is_loaded_without_a_list_of_what_it_may_name():
    """`pickle.Unpickler` under a class with its own `find_class` is all that is allowed, and the names of errors."""
    for path in [*CORE, *PLUGINS]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"}
        used |= {m.partition(".")[2] for m, _ in imports(path) if m.startswith("pickle.")}
        assert used <= {"Unpickler", "UnpicklingError", "PickleError"}, path
        bases = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.ClassDef) and any("Unpickler" in ast.unparse(b) for b in n.bases)
        ]
        assert ("Unpickler" in used) == bool(bases), path
        for base in bases:
            assert "find_class" in {m.name for m in base.body if isinstance(m, ast.FunctionDef)}, path


def test_only_one_module_imports_torchattacks():
    found = [name_of(p, ROOT) for p in CORE for m, _ in imports(p) if m.split(".")[0] == "torchattacks"]
    assert set(found) <= {"iclr18cli.attack.torchattacks"}
    assert not [p for p in PLUGINS for m, _ in imports(p) if m.split(".")[0] == "torchattacks"]


def test_every_part_of_the_core_has_a_layer():
    parts = {part_of(name_of(path, ROOT)) for path in CORE} - {""}
    assert parts <= set(RANK), "a new part of the core: give it a layer here, and a line in DESIGN section 3"


def test_arrows_point_downwards():
    wrong = []
    for path in CORE:
        here = part_of(name_of(path, ROOT))
        for module, late in imports(path):
            there = part_of(module) if module.startswith("iclr18cli.") else ""
            if not here or there in ("", here, "__version__"):
                continue
            upwards = RANK[there] > RANK[here]
            allowed = late and ((here, there) in LATE or _for_types_only(path, module))
            if upwards and not allowed:
                wrong.append(f"{path.relative_to(ROOT)} -> {module}")
    assert wrong == []


def _for_types_only(path, module):
    """Whether every import of a module in a file stands under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    inside = {id(n) for block in guarded for n in ast.walk(block)}
    target = module.rpartition(".")[0]
    return all(id(n) in inside for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == target)


def test_command_line_code_imports_nothing_heavy_at_module_level():
    light = {"cli", "lazy", "plugin", "hookspecs", "manager", "records", "time_limit", "config", "settings", "console",
             "errors", "paths", "execute", "api", "commands", "testing", "__main__", ""}  # fmt: skip
    for path in CORE:
        if part_of(name_of(path, ROOT)) in light:
            assert not {m for m, late in imports(path) if not late and m.split(".")[0] in HEAVY}, path


def test_records_and_configs_of_plugins_import_nothing_heavy_at_module_level():
    for path in PLUGINS:
        if path.name in ("__init__.py", "config.py"):
            assert not {m for m, late in imports(path) if not late and m.split(".")[0] in HEAVY}, path


def test_importing_the_records_of_every_plugin_and_the_core_loads_nothing_heavy():
    program = (
        "import sys, json\nimport iclr18cli\nbare = sorted(m for m in sys.modules if m.startswith('iclr18cli'))\n"
        "import iclr18cli.api, iclr18cli.cli, iclr18cli.testing\nfrom iclr18cli.manager import plugins\n"
        "plugins().survey()\nprint(json.dumps([bare, sorted(sys.modules)]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    bare, loaded = json.loads(ended.stdout)
    assert bare == ["iclr18cli"]
    assert not set(loaded) & (HEAVY | NEVER)


def test_importing_the_package_imports_only_itself():
    program = "import sys\nbefore = set(sys.modules)\nimport iclr18cli\nprint(sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout.strip() == "['iclr18cli']"


@pytest.mark.parametrize("kind", OFFERS)
def test_every_target_of_every_installed_record_resolves(kind):
    from iclr18cli.attack.builtin import BUILTIN as ATTACKS
    from iclr18cli.certify.builtin import BUILTIN as CERTIFIERS
    from iclr18cli.data.builtin import BUILTIN as DATASETS
    from iclr18cli.models.builtin import BUILTIN as MODELS

    builtin = {"datasets": DATASETS, "models": MODELS, "attacks": ATTACKS, "certifiers": CERTIFIERS}.get(kind, ())
    for record in (*builtin, *getattr(plugins(), kind)()):
        for part, name in product(
            getattr(record, "commands", {"": record}).values(), ("config", "run", "load", "build", "refuses")
        ):
            target = getattr(part, name, "")
            if target:
                assert callable(resolve(target)), f"{record.name}: {target}"


def test_no_file_is_named_for_nothing():
    forbidden = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py", "tools.py"}
    assert not [path for path in EVERYTHING if path.name in forbidden]


def test_no_file_has_more_than_500_lines(record_property):
    sizes = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in [*CORE, *PLUGINS]}
    long = {name: size for name, size in sizes.items() if size > 300}
    record_property("over_300_lines", long)
    if long:
        print(f"asked to split: {long}")
    assert not {name: size for name, size in long.items() if size > 500}


def test_records_of_a_plugin_are_at_most_40_lines_and_training_at_most_150():
    for path in PLUGINS:
        limit = {"__init__.py": 40, "train.py": 150}.get(path.name)
        if limit and path.parent.parent == ROOT / "plugins":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_bare_except_no_silent_except_no_print_in_libraries(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno} bare except"
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(step, ast.Pass) for step in node.body)
            assert not (broad and silent), f"{path}:{node.lineno} swallows everything"
    talks = (
        part_of(name_of(path, ROOT)) in ("cli", "console", "commands", "manager", "testing") if path in CORE else False
    )
    calls = [
        n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("print", "sys.exit")
    ]
    assert talks or not calls, f"{path}:{calls} talks past the console"


def test_no_committed_path_of_this_machine_and_no_cuda_call():
    for path in [*CORE, *PLUGINS]:
        text = path.read_text(encoding="utf-8")
        assert ".cuda()" not in text, path
        assert "/work/" not in text, path
        assert "allow_pickle=True" not in text, path
        assert "weights_only=False" not in text, path
