"""What the tests check of each architecture, for the table of docs/families.md, from the tests' own tables. They are read, not imported: they
need torch, and the page does not.

A test checks an architecture when what it is parametrized with, itself or by its fixtures, leads to the class of that architecture's
configuration in transformers ("transformers.Qwen3Config", through names of tables and functions, also of other modules), or to the class
of the composite model itself. A string among the parameters that is a key of a table of such rows names that row; one that is the name of
a composite's class names that. Language models that exist within another model alone (Qwen2VLTextModel) are checked where that is.

It checks the forward pass when it calls a function of COMPARES, and artifacts when it calls a method of ARTIFACTS, itself or through functions
and fixtures of the modules.
"""

import ast
import os
import re

TOKENIZERS = "test_tokenizer_families"
COMPARES = {"compare", "compare_composite"}  # of test_forward.py: they hold quantd's logits to those of transformers
ARTIFACTS = {"artifact", "download"}  # which get what a job made
LIBRARY = "transformers"
ENDINGS = re.compile("(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
COMPOSITE, WITHIN = "ForConditionalGeneration", "TextModel"


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

    def table(self, module, tree):
        """(module, node) of the table that an expression names, or (None, None)."""
        if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
            owner = self.module(module).get(tree.value.id)
            return self.table(owner[1], ast.Name(tree.attr)) if isinstance(owner, tuple) and owner[2] is None else (None, None)
        node = self.module(module).get(tree.id) if isinstance(tree, ast.Name) else None
        if isinstance(node, tuple):
            return self.table(node[1], ast.Name(node[2])) if node[2] else (None, None)
        return (module, node) if isinstance(node, ast.Dict) else (None, None)

    def chosen(self, module, tree):
        """(module, row) of each row that a comprehension takes from a table by name, {name: TABLE[name] for name in ("a", "b")}, or None."""
        if not isinstance(tree, ast.DictComp) or not isinstance(tree.value, ast.Subscript) or len(tree.generators) != 1:
            return None
        owner, table = self.table(module, tree.value.value)
        names = tree.generators[0].iter
        if table is None or not isinstance(names, (ast.List, ast.Tuple)) or not all(isinstance(name, ast.Constant) for name in names.elts):
            return None
        wanted = {name.value for name in names.elts}
        return [(owner, value) for key, value in zip(table.keys, table.values) if isinstance(key, ast.Constant) and key.value in wanted]

    def reach(self, module, tree, seen=frozenset(), keys=False):
        """The classes of transformers that an expression, or the body of a function, leads to."""
        rows = self.chosen(module, tree)
        if rows is not None:
            return set().union(*(self.reach(owner, row, seen) for owner, row in rows))
        found = set()
        if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
            owner = self.module(module).get(tree.value.id)
            if isinstance(owner, tuple) and owner[2] is None:
                found |= {tree.attr} if owner[1] == LIBRARY else self.look_up(owner[1], tree.attr, seen)
        elif isinstance(tree, ast.Name):
            found |= self.look_up(module, tree.id, seen)
        elif keys and isinstance(tree, ast.Constant) and isinstance(tree.value, str):
            found |= {tree.value} if tree.value.endswith(COMPOSITE) else self.look_up_key(module, tree.value, seen)
        for node in ast.iter_child_nodes(tree):
            found |= self.reach(module, node, seen, keys)
        return found

    def used(self, module, function):
        """A test and the fixtures of its module that it has by its arguments, these by theirs, and so on."""
        found = [function]
        for node in found:
            fixtures = (self.module(module).get(argument.arg) for argument in node.args.args)
            found += [fixture for fixture in fixtures if isinstance(fixture, ast.FunctionDef) and fixture not in found]
        return found

    def calls(self, module, function, seen):
        """The names of the functions and methods that are called, through functions of the modules."""
        if (module, function.name) in seen:
            return set()
        seen.add((module, function.name))
        found = set()
        for node in ast.walk(function):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", None)
            found |= {name} if name else set()
            if isinstance(called, ast.Name):
                owner, node = module, self.module(module).get(name)
                if isinstance(node, tuple):
                    owner, node = node[1], self.module(node[1]).get(node[2])
                if isinstance(node, ast.FunctionDef):
                    found |= self.calls(owner, node, seen)
        return found

    def parametrized(self, functions):
        """The classes that tests which call one of these functions are parametrized with, by decorators of their own or of fixtures."""
        found = set()
        for module in self.texts:
            for test in list(self.module(module).values()) if module.startswith("test_") else ():
                if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                    parts, seen = self.used(module, test), set()
                    if functions & set().union(*(self.calls(module, part, seen) for part in parts)):
                        found |= set().union(*(self.parameters(module, part) for part in parts))
        return found

    def parameters(self, module, function):
        found = set()
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", "") in ("parametrize", "fixture"):
                for argument in [*decorator.args[1:], *(keyword.value for keyword in decorator.keywords)]:
                    found |= self.reach(module, argument, keys=True)
        return found


def has(name, within, classes):
    """Whether an architecture is among the classes."""
    if name.endswith(WITHIN):
        return bool(within) and all(composite in classes for composite in within)
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
    forward, artifacts = tests.parametrized(COMPARES), tests.parametrized(ARTIFACTS)
    tokenizers = pipelines(texts[TOKENIZERS])
    golden = {line.partition("/")[0].partition("-")[0] for line in digests.splitlines() if not line.startswith("#")}
    lines = ["| architecture | forward pass | artifacts | tokenizer | digests |", "|---|---|---|---|---|"]
    composites = set()
    for name, kind, within in rows:
        composites.update(within)
        lines.append(line_of(name, [has(name, within, forward), has(name, within, artifacts), bool(tokenizers.get(kind)), kind in golden]))
    lines += [line_of(name, [has(name, [], forward), has(name, [], artifacts)]) for name in sorted(composites)]
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
def compare(folder):
    pass
CASES = {"a": (a, {}), "b-more": (b, {"x": 1})}
BOTH = {"d": (a, transformers.DForConditionalGeneration), "e": (unused, 1), "f": (b, transformers.FForConditionalGeneration)}
@pytest.mark.parametrize("case", CASES)
def test_all(case):
    compare(case)
@pytest.mark.parametrize("case", [unused])
def test_other(case):
    pass
""",
        "test_loads": """
import pytest
import test_forward
from test_forward import b, compare
from transformers import EConfig
OWN = {"e": EConfig}
FEW = {name: test_forward.BOTH[name] for name in ("d",)}
@pytest.fixture(scope="module", params=[*OWN, *FEW])
def setting(request):
    return b
def get(setting):
    return setting.artifact("rtn")
def test_loads(setting):
    get(setting)
@pytest.mark.parametrize("case", ["f", "GForConditionalGeneration"])
def test_logits(case):
    compare(case)
""",
        "test_tokenizer_families": 'BYTE_LEVEL = {"x": 1}\nFALLBACK = UNIGRAM = {}\nPIPELINES = {"a": ["x"], "b": []}\n',
    }
    tests = Tests(texts)
    forward = {"AConfig", "BTextConfig", "FForConditionalGeneration", "GForConditionalGeneration"}
    assert tests.parametrized(COMPARES) == forward, tests.parametrized(COMPARES)
    assert tests.parametrized(ARTIFACTS) == {"EConfig", "AConfig", "DForConditionalGeneration"}, tests.parametrized(ARTIFACTS)
    rows = list(rows_of("| architecture | model_type | within |\n|---|---|---|\n| `AForCausalLM` | `a` |  | x |\n"
                        "| `BForCausalLM` | `b` | `DForConditionalGeneration` | x |\n| `FTextModel` | `f` | `FForConditionalGeneration` | x |\n"))
    assert table_of(rows, texts, "# made with\na-long/gptq/ct f 0\n").splitlines()[2:] == [
        "| `AForCausalLM` | yes | yes | yes | yes |", "| `BForCausalLM` | yes | **no** | **no** | **no** |",
        "| `FTextModel` | yes | **no** | **no** | **no** |",
        "| `DForConditionalGeneration` | **no** | yes | its language model's | its language model's |",
        "| `FForConditionalGeneration` | yes | **no** | its language model's | its language model's |"]
