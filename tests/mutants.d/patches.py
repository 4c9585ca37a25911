"""The patches of tests/mutants: puts all of them into a copy of the tree, and renews those that no longer apply.

Rule: the tree is only read. A patch applies where the lines that it shows are exactly once in its file; their
numbers do not matter. All patches are applied to the text of the tree, so that none depends on another: two
may show the same lines, but not change the same line.

usage: patches.py check | apply COPY | renew EDIT [NAME...] | save EDIT NAME
"""

import difflib
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
# Where a patch that has lost its file is looked for.
PRODUCT = ["cbt/src", "daemon", "schedules/src"]
TESTS = "tests/Cargo.toml"
# Unit tests under a name of their own: `--lib` would build those of all packages.
UNITS = {"daemon/core": "core_unit", "daemon/disks": "disks_unit", "daemon/endpoints/libvirt": "libvirt_unit"}
# What the copy has besides the patches: the switch, which all packages reach by one path.
SWITCH = "\nextern crate self as warmd_cbt;\nmod mutant;\npub use mutant::mutant;\n"


class Misfit(Exception):
    """A hunk has no place, or more than one."""


def patch_of(name):
    return HERE / f"{name}.patch"


def all_names():
    return sorted(path.stem for path in HERE.glob("*.patch"))


def hunks_of(name):
    """The hunks of a patch: of each its file, and its lines with their signs."""
    found, path = [], None
    for line in lines_of(patch_of(name)):
        if line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif line.startswith("@@"):
            found.append((path, []))
        elif found and not line.startswith("---"):
            found[-1][1].append((line[:1] or " ", line[1:]))
    if not found:
        raise Misfit("it has no hunk")
    return found


def places(hunk, lines):
    """Where the lines that a hunk shows are."""
    shown = [line for sign, line in hunk if sign != "+"]
    return [at for at in range(len(lines) - len(shown) + 1) if lines[at : at + len(shown)] == shown]


def says_enough(hunk):
    """Whether the lines that a hunk shows are more than brackets."""
    return sum(len(re.findall(r"\w", line)) for sign, line in hunk if sign != "+") >= 20


class Edited:
    """A file's text with the changes of any number of hunks."""

    def __init__(self, lines):
        self.lines = lines
        self.before = defaultdict(list)
        self.instead = {}
        self.owners = {}

    def apply(self, name, hunk, at):
        replaced = None
        for sign, line in hunk:
            if sign == "+" and replaced is None:
                self.before[at].append(line)
            elif sign == "+":
                self.instead[replaced].append(line)
            elif sign == "-":
                if self.owners.setdefault(at, name) != name:
                    raise Misfit(f"it changes a line that {self.owners[at]} changes too: {line.strip()}")
                replaced = at
                self.instead[at] = []
                at += 1
            else:
                replaced = None
                at += 1

    def text(self):
        out = []
        for at in range(len(self.lines) + 1):
            out += self.before[at]
            out += self.instead.get(at, self.lines[at : at + 1])
        return "\n".join(out) + "\n"


def split(text):
    return text.removesuffix("\n").split("\n")


def lines_of(path):
    return split(path.read_text())


def files():
    """The tree's files, as git knows them."""
    listed = subprocess.run(
        ["git", "-C", TREE, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout
    return [name for name in listed.split("\0") if name and (TREE / name).is_file()]


def sources():
    below = tuple(f"{folder}/" for folder in PRODUCT)
    return [name for name in files() if name.startswith(below) and name.endswith(".rs")]


def make_copy(copy, texts):
    """Makes `copy` equal to the tree, with other texts for some files. What is equal already stays untouched,
    for cargo's sake."""
    wanted = {name: texts.get(name) for name in [*files(), *texts]}
    for name, text in wanted.items():
        data = (TREE / name).read_bytes() if text is None else text.encode()
        path = copy / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if text is None:
                path.chmod((TREE / name).stat().st_mode & 0o777)
    for path in copy.rglob("*"):
        if path.is_file() and str(path.relative_to(copy)) not in wanted:
            path.unlink()


def edited_files():
    """The files with all patches; `None` if one does not apply."""
    edited, bad = {}, False
    for name in all_names():
        try:
            for path, hunk in hunks_of(name):
                if not (TREE / path).is_file():
                    raise Misfit(f"{path} is gone")
                file = edited.setdefault(path, Edited(lines_of(TREE / path)))
                found = places(hunk, file.lines)
                if len(found) != 1:
                    raise Misfit(f"the lines that it shows are {len(found)} times in {path}, and must be there once")
                file.apply(name, hunk, found[0])
        except Misfit as misfit:
            print(f"tests/mutants.d/{name}.patch does not apply: {misfit}; tests/mutants --renew {name}", file=sys.stderr)
            bad = True
    return None if bad else edited


def apply(copy):
    edited = edited_files()
    if edited is None:
        return 1
    texts = {path: file.text() for path, file in edited.items()}
    lib = "cbt/src/lib.rs"
    texts[lib] = texts.get(lib, (TREE / lib).read_text()) + SWITCH
    texts["cbt/src/mutant.rs"] = (HERE / "mutant.rs").read_text()
    # Another version: cargo then keeps what it builds of the copy's packages beside the tree's, in the same
    # directory, and builds no other package again.
    manifest = (TREE / "Cargo.toml").read_text()
    version = re.search(r'(?m)^version = "(.*)"$', manifest).group(1)
    texts["Cargo.toml"] = manifest.replace(f'version = "{version}"', f'version = "{version}-mutants"', 1)
    lock = (TREE / "Cargo.lock").read_text()
    texts["Cargo.lock"] = re.sub(rf'(name = "warmd-[\w-]+"\nversion = "{version})"', r'\1-mutants"', lock)
    # No suite runs a program of the tests.
    texts[TESTS] = (TREE / TESTS).read_text().replace("[package]\n", "[package]\nautobins = false\n", 1)
    for package, name in UNITS.items():
        own = f"{package}/Cargo.toml"
        texts[own] = (TREE / own).read_text() + f'\n[[test]]\nname = "{name}"\npath = "src/lib.rs"\n'
    make_copy(copy, texts)
    return 0


def write(name, changed):
    """Writes the patch from the files' new texts, with as few lines around as make each place unique."""
    for around in range(1, 12):
        diff = []
        for path in sorted(changed):
            old = lines_of(TREE / path)
            diff += difflib.unified_diff(
                old, split(changed[path]), f"a/{path}", f"b/{path}", n=around, lineterm="")
        patch_of(name).write_text("\n".join(diff) + "\n")
        if all(len(places(hunk, lines_of(TREE / path))) == 1 and says_enough(hunk) for path, hunk in hunks_of(name)):
            return
    sys.exit(f"{name}: no place of its changes can be told from others")


def renew(edit, names):
    """Writes patches again whose lines were moved, within their file or to another; of one that was named and
    whose lines are gone, `edit` is made with what still applies."""
    bad = False
    for name in names or all_names():
        known = patch_of(name).is_file()
        changed, lost = {}, []
        for path, hunk in hunks_of(name) if known else []:
            own = [(path, at) for at in places(hunk, lines_of(TREE / path))] if (TREE / path).is_file() else []
            found = own if len(own) == 1 else [
                (other, at) for other in sources() for at in places(hunk, lines_of(TREE / other))]
            if len(found) != 1:
                lost.append((path, hunk))
                continue
            (place, at), = found
            file = changed.setdefault(place, Edited(lines_of(TREE / place)))
            file.apply(name, hunk, at)
        texts = {path: file.text() for path, file in changed.items()}
        if known and not lost:
            write(name, texts)
            continue
        bad = True
        for path, hunk in lost:
            print(f"{name}: this has no place in {path}, nor one place elsewhere:")
            print("".join(f"    {sign}{line}\n" for sign, line in hunk), end="")
        if names:
            make_copy(edit, texts)
            print(f"put the bug into the files below {edit}, then run: tests/mutants --save {name}")
    return 1 if bad else 0


def save(edit, name):
    changed = {
        path: (edit / path).read_text() for path in sources()
        if (edit / path).is_file() and (edit / path).read_text() != (TREE / path).read_text()}
    if not changed:
        sys.exit(f"no file below {edit} differs from the tree")
    write(name, changed)
    return 0


def main():
    if sys.argv[1:] == ["check"]:
        return 1 if edited_files() is None else 0
    what, copy, *names = sys.argv[1:]
    copy = Path(copy)
    if what == "apply":
        return apply(copy)
    if what == "renew":
        return renew(copy, names)
    return save(copy, *names)


if __name__ == "__main__":
    sys.exit(main())
