"""What a pull request changes among the records, as one Markdown comment.

git worktree add ../base main
python tools/pull_request.py ../base/results results > comment.md

Every record is verified. Each folder `<machine>/<suite>` whose records are not those of the base is then compared with it
(`effbench compare`), or shown by itself where the base does not have it (`effbench board`).
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from effbench.store.scan import is_pack_name


def records_of(results: Path) -> dict[str, dict[str, bytes]]:
    """Contents of records, packs and `suite.json` by name, by folder `<machine>/<suite>`. Links are not followed."""
    found: dict[str, dict[str, bytes]] = {}
    for file in sorted(results.glob("*/*/*")):
        if (file.suffix == ".json" or is_pack_name(file.name)) and not file.is_symlink():
            found.setdefault(f"{file.parent.parent.name}/{file.parent.name}", {})[file.name] = file.read_bytes()
    return found


def effbench(*arguments: str) -> str:
    """What the command prints, its complaint where it has one."""
    command = [sys.executable, "-m", "effbench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()


def comment(base: Path, head: Path, run: Callable[..., str] = effbench) -> str:
    """The whole comment."""
    return "\n\n".join(sections(base, head, run)) + "\n"


def sections(base: Path, head: Path, run: Callable[..., str]) -> Iterator[str]:
    """Heading, verification, and a section for each folder that changed."""
    yield "## Records"
    # Each line of `verify` begins with a word or with six spaces, so that none can end the fence.
    yield "```text\n" + run("verify", str(head)) + "\n```"
    before, after = records_of(base), records_of(head)
    for folder in sorted(before.keys() | after.keys()):
        old, new = before.get(folder, {}), after.get(folder, {})
        if old == new:
            continue
        name = re.sub(r"[^\w./-]", "?", folder)
        changes = (
            len(new.keys() - old.keys()),
            sum(old[n] != new[n] for n in old.keys() & new.keys()),
            len(old.keys() - new.keys()),
        )
        yield "### `{}`: {} files added, {} changed, {} removed".format(name, *changes)
        if old and new:
            yield run("compare", str(base / folder), str(head / folder), "--format", "markdown")
        elif new:
            yield run("board", str(head / folder), "--format", "markdown")


def main() -> None:
    """Print the comment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the results folder as it was")
    parser.add_argument("head", type=Path, help="the results folder as it is now")
    given = parser.parse_args()
    print(comment(given.base, given.head), end="")


if __name__ == "__main__":
    main()
