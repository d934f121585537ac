"""What the tests check of each architecture, for the table of docs/families.md, from the tests' own tables. They are read, not imported: they
need torch, and the page does not.

A test checks an architecture when what it is parametrized with leads to the class of that architecture's configuration in transformers
("transformers.Qwen3Config", through names of tables and functions, also of other modules), or to the class of the composite model
itself. A string among the parameters that is a key of a table of such rows names that row.
"""

import ast
import os
import re

FORWARD, TOKENIZERS = "test_forward", "test_tokenizer_families"
LIBRARY = "transformers"
ENDINGS = re.compile("(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
COMPOSITE = "ForConditionalGeneration"


class Tests:
    """The modules of tests/interop, each parsed when it is first asked for."""

    def __init__(self, texts):
        self.texts, self.modules = texts, {}

    def module(self, name):
        """{name at the top level: what it is}: a node of the tree, or ("import", module, name or None)."""
        if name not in self.modules and name in self.texts:
            self.modules[name] = names = {}
            for node in ast.parse(self.texts[name]).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    names[node.name] = node
                elif isinstance(node, ast.Assign):
                    names.update((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
                elif isinstance(node, ast.Import):
                    names.update((alias.asname or alias.name, ("import", alias.name, None)) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    names.update((alias.asname or alias.name, ("import", node.module, alias.name)) for alias in node.names)
        return self.modules.get(name, {})

    def look_up(self, module, name, seen):
        """The classes that a name at the top level of a module leads to."""
        node = self.module(module).get(name)
        if isinstance(node, tuple):
            _, other, attribute = node
            return set() if attribute is None else {attribute} if other == LIBRARY else self.look_up(other, attribute, seen)
        if node is None or (module, name) in seen or isinstance(node, ast.ClassDef):
            return set()
        return self.reach(module, node, seen | {(module, name)})

    def look_up_key(self, module, key, seen):
        """The classes of the rows of this key, of tables of the module and of those that it imports."""
        found = set()
        for name, node in self.module(module).items():
            if isinstance(node, tuple) and node[2] is None and node[1] in self.texts and (node[1], None) not in seen:
                found |= self.look_up_key(node[1], key, seen | {(module, None)})
            for row, value in zip(node.keys, node.values) if isinstance(node, ast.Dict) else ():
                if isinstance(row, ast.Constant) and row.value == key:
                    found |= self.reach(module, value, seen, keys=False)
        return found

    def reach(self, module, tree, seen=frozenset(), keys=False):
        """The classes of transformers that an expression, or the body of a function, leads to."""
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = self.module(module).get(node.value.id)
                if isinstance(owner, tuple) and owner[2] is None:
                    found |= {node.attr} if owner[1] == LIBRARY else self.look_up(owner[1], node.attr, seen)
            elif isinstance(node, ast.Name):
                found |= self.look_up(module, node.id, seen)
            elif keys and isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= self.look_up_key(module, node.value, seen)
        return found

    def parametrized(self, module):
        """The classes that tests of a module are parametrized with, by decorators of their own or of fixtures."""
        found = set()
        for node in self.module(module).values():
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", "") in ("parametrize", "fixture"):
                    for argument in [*decorator.args[1:], *(keyword.value for keyword in decorator.keywords)]:
                        found |= self.reach(module, argument, keys=True)
        return found


def has(name, classes):
    """Whether an architecture is among the classes."""
    stem = ENDINGS.sub("", name)
    return name in classes or stem + "Config" in classes or (not name.endswith(COMPOSITE) and stem + "TextConfig" in classes)


def pipelines(text):
    """{model_type: pipelines of tokenizers that are compared}; each must be in one of the tables."""
    tables = {target.id: node.value for node in ast.parse(text).body if isinstance(node, ast.Assign) for target in node.targets
              if isinstance(target, ast.Name)}
    known = {key.value for name in ("BYTE_LEVEL", "FALLBACK", "UNIGRAM") for key in tables[name].keys}
    found = ast.literal_eval(tables["PIPELINES"])
    wrong = sorted(name for names in found.values() for name in names if name not in known)
    if wrong:
        raise SystemExit("%s: PIPELINES names what is not in its tables: %s" % (TOKENIZERS, wrong))
    return found


def rows_of(table):
    """(architecture, model_type, composites) of each row of the tool's first table."""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("`"):
            yield cells[0].strip("`"), cells[1].strip("`"), re.findall("`(.+?)`", cells[2])


def table_of(rows, texts, digests):
    """The table, in Markdown."""
    tests = Tests(texts)
    forward = tests.parametrized(FORWARD)
    artifacts = set().union(*(tests.parametrized(name) for name in texts if name.startswith("test_") and name not in (FORWARD, TOKENIZERS)))
    tokenizers = pipelines(texts[TOKENIZERS])
    golden = {line.partition("/")[0].partition("-")[0] for line in digests.splitlines() if not line.startswith("#")}
    lines = ["| architecture | forward pass | artifacts | tokenizer | digests |", "|---|---|---|---|---|"]
    composites = set()
    for name, kind, within in rows:
        composites.update(within)
        lines.append(line_of(name, [has(name, forward), has(name, artifacts), bool(tokenizers.get(kind)), kind in golden]))
    lines += [line_of(name, [has(name, forward), has(name, artifacts)]) for name in sorted(composites)]
    return "\n".join(lines) + "\n"


def line_of(name, checks):
    cells = ["yes" if check else "**no**" for check in checks] + ["its language model's"] * (4 - len(checks))
    return "| `%s` | %s |" % (name, " | ".join(cells))


def checked(root, table):
    """What docs/families.md says after the table of the tool."""
    folder = os.path.join(root, "tests", "interop")
    texts = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                texts[name.removesuffix(".py")] = file.read()
    with open(os.path.join(root, "tests", "golden", "digests.txt"), encoding="utf-8") as file:
        digests = file.read()
    return table_of(list(rows_of(table)), texts, digests)


def self_test():
    texts = {
        "test_forward": """
import pytest, transformers
def a(**more):
    return transformers.AConfig(**more)
def b():
    return transformers.BTextConfig()
def unused():
    return transformers.CConfig()
CASES = {"a": (a, {}), "b-more": (b, {"x": 1})}
BOTH = {"d": (a, transformers.DForConditionalGeneration), "e": (unused, 1)}
@pytest.mark.parametrize("case", CASES)
def test_all(case):
    unused()
""",
        "test_loads": """
import pytest
import test_forward
from test_forward import b
from transformers import EConfig
OWN = {"e": EConfig}
@pytest.fixture(scope="module", params=[*OWN, "d"])
def setting(request):
    return b
""",
        "test_tokenizer_families": 'BYTE_LEVEL = {"x": 1}\nFALLBACK = UNIGRAM = {}\nPIPELINES = {"a": ["x"], "b": []}\n',
    }
    tests = Tests(texts)
    assert tests.parametrized("test_forward") == {"AConfig", "BTextConfig"}, tests.parametrized("test_forward")
    assert tests.parametrized("test_loads") == {"EConfig", "AConfig", "DForConditionalGeneration"}, tests.parametrized("test_loads")
    rows = list(rows_of("| architecture | model_type | within |\n|---|---|---|\n| `AForCausalLM` | `a` |  | x |\n"
                        "| `BForCausalLM` | `b` | `DForConditionalGeneration` | x |\n"))
    assert table_of(rows, texts, "# made with\na-long/gptq/ct f 0\n").splitlines()[2:] == [
        "| `AForCausalLM` | yes | yes | yes | yes |", "| `BForCausalLM` | yes | **no** | **no** | **no** |",
        "| `DForConditionalGeneration` | **no** | yes | its language model's | its language model's |"]
