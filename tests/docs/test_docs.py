"""Docs that are run: commands and options that exist, code that works, links that lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands() -> list[tuple[str, str]]:
    """Return (page, command line) for every `iclr18 …` in a shell block or in a table of commands and results."""
    found = []
    for page in PAGES:
        for text in blocks(page, "sh", ""):
            joined = text.replace("\\\n", " ")
            found += [
                (page.name, line.split("#")[0].strip()) for line in joined.splitlines() if line.startswith("iclr18 ")
            ]
        found += [(page.name, line) for line in re.findall(r"`(iclr18 [a-z][^`]*)`", page.read_text())]
    return sorted(set(found))


def root_commands() -> dict[str, set[str]]:
    """Return command -> its subcommands, from the installed tool itself."""
    import typer

    from iclr18cli.cli import app

    context = typer.Context(typer.main.get_group(app))
    root = typer.main.get_group(app)
    found = {}
    for name in root.list_commands(context):
        opened = root.get_command(context, name).open()
        found[name] = set(opened.list_commands(context)) if hasattr(opened, "list_commands") else set()
    return found


def test_every_command_in_the_docs_exists():
    known = root_commands()
    for page, line in commands():
        words = [word.strip(",;") for word in line.split()[1:]]
        if words[0] in ("TECHNIQUE", "hello", "mytech") or words[0].startswith("-"):
            continue
        assert words[0] in known, f"{page}: {line}"
        if known[words[0]] and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in known[words[0]], f"{page}: {line}"


def test_every_option_in_the_docs_exists():
    import typer

    from iclr18cli.cli import app

    root = typer.main.get_group(app)
    context = typer.Context(root)
    options: set[str] = {"--help", "--version", "--block", "--install-completion"}
    for name in root.list_commands(context):
        opened = root.get_command(context, name).open()
        leaves = [opened]
        if hasattr(opened, "list_commands"):
            leaves = [opened.get_command(context, word) for word in opened.list_commands(context)]
            leaves = [leaf.open() if hasattr(leaf, "open") else leaf for leaf in leaves]
        options |= {word for leaf in leaves for p in leaf.params for word in (*p.opts, *p.secondary_opts)}
    for page in PAGES:
        foreign = ("python benchmarks/", "torchrun ", "#SBATCH")
        text = "\n".join(line for line in page.read_text().splitlines() if not any(w in line for w in foreign))
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text):
            assert option in options, f"{page.name}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_name_of_code_in_an_equation_map_exists():
    """Rows like `algorithm.surrogate_ascent` in a plugin's README name something that is there."""
    from iclr18cli.plugin import resolve

    for page in ROOT.glob("plugins/*/README.md"):
        names = re.findall(r"`((?:\w+)\.(?:\w+))`", page.read_text())
        package = page.parent.name
        modules = {path.stem for path in page.parent.glob("*.py")}
        mapped = [name for name in names if name.split(".")[0] in modules]
        shared = re.findall(r"`(iclr18cli(?:\.\w+)+)\.(\w+)`", page.read_text())
        assert mapped or shared, f"{page}: no equation map"
        for module, attribute in shared:
            assert resolve(f"{module}:{attribute}") is not None
        for name in mapped:
            module, attribute = name.split(".")
            if attribute not in ("py", "toml"):
                assert resolve(f"{package}.{module}:{attribute}") is not None


def test_every_hook_in_the_docs_exists():
    from iclr18cli import hookspecs

    ours = {path.name for path in (ROOT / "plugins").iterdir()}
    for page in PAGES:
        for name in set(re.findall(r"\biclr18_(?!hello|api|log)[a-z_]+\b", page.read_text())) - ours:
            assert hasattr(hookspecs, name), f"{page.name}: {name}"


def test_the_python_example_of_the_readme_runs(tmp_path):
    example, own = blocks(ROOT / "README.md", "python")
    made = "import torch\nmodel = torch.nn.Linear(8, 4)\nx = torch.rand(20, 8)\ny = model(x).argmax(1)\n"
    for block in (example, made + own.replace("n=10_000", "n=200")):
        assert_runs(block, tmp_path)


def assert_runs(example, tmp_path):
    ended = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "proven" in ended.stdout


def test_the_plugin_of_the_docs_trains_attacks_and_certifies(tmp_path):
    """Writes the files of docs/plugins.md as they stand there and runs them as an installed distribution."""
    files = {}
    for language, text in BLOCK.findall((ROOT / "docs" / "plugins.md").read_text()):
        name = text.splitlines()[0].removeprefix("# ")
        if language == "python" and name.startswith("hello_iclr18/"):
            files[name] = text
    assert set(files) == {f"hello_iclr18/{name}.py" for name in ("__init__", "config", "train")}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    distribution = tmp_path / "iclr18_hello-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: iclr18-hello\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[iclr18]\nhello = hello_iclr18\n")
    program = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom iclr18cli.cli import run\n"
        f"R = ['--runs-dir', {str(tmp_path / 'runs')!r}, '--quiet']\n"
        "lines = [['hello', 'train', '--epochs', '1'], ['hello', 'eval', '@last'], ['hello', 'certify', '@last'],\n"
        "         ['attack', '@last', '--steps', '2', '--limit', '20'], ['certify', '@last', '--limit', '20']]\n"
        "sys.exit(max(run(line + R) for line in lines))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "The network has" in ended.stdout


def test_ci_calls_the_test_command_of_the_readme():
    command = "pip install -e '.[all,dev]' && pytest -q -n auto"
    assert any(command in text for text in blocks(ROOT / "README.md", "sh"))
    assert command in (ROOT / ".ci" / "run").read_text().replace("pip install --quiet", "pip install")
