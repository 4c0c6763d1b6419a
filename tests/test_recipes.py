"""The scripts and commands of docs/recipes: bash reads them, and the command line knows every option in them."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from championship_sr.extract.run.shares import Part
from championship_sr.pipeline import cli

FOLDER = Path(__file__).parents[1] / "docs/recipes"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".sh", ".sbatch"))


def code(path: Path) -> str:
    """The shell code of a script, or of a page's blocks."""
    text = path.read_text()
    return text if path.suffix != ".md" else "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))


def commands() -> list[str]:
    """Every pipeline.py line of the recipes, continuation lines joined, variables replaced by 1."""
    lines = [line for path in FOLDER.iterdir() for line in code(path).replace("\\\n", " ").splitlines()]
    found = (re.search(r"pipeline\.py (.*)", line) for line in lines if not line.lstrip().startswith("#"))
    return [re.sub(r"\$\{\w+[^}]*\}|\$\w+", "1", match[1]).removesuffix("&") for match in found if match]


def parsed(command: click.Command, name: str, words: list[str], parent: click.Context | None = None) -> click.Context:
    """The context of the innermost command, as click makes it before it runs."""
    context = command.make_context(name, words, parent=parent)
    if not isinstance(command, click.Group):
        return context
    name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return parsed(inner, name, rest, context)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_script(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("line", commands())
def test_the_command_line_knows_the_options(line):
    context = parsed(cli, "championship-sr", shlex.split(line, comments=True))
    if context.params.get("part"):
        Part.parse(context.params["part"])


def test_every_stage_is_in_a_recipe_and_every_script_is_on_the_page():
    used = {tuple(word for word in line.split()[:2] if word.isalpha()) for line in commands()}
    assert {("extract",), ("store", "merge"), ("store", "verify"), ("experts", "check"), ("train",)} <= used
    page = (FOLDER / "README.md").read_text()
    assert [script.name for script in SCRIPTS if f"]({script.name})" not in page] == []
