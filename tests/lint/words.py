#!/usr/bin/env python3
"""Documentation and comments use the words of the field. Usage: words.py ROOT

Looks for words that mean something else, or nothing, to readers of other projects, in docs/, README.md, CONTRIBUTING.md, CHANGELOG.md and
each layer's README.md, and for those that are never meant otherwise in the comments of the C files of COMMENTED; names the word to use.
Code (fenced blocks, `code`), what a comment quotes, targets of links and lists made from sources are not looked at.
"""

import re
import sys

import tree

PAGES = re.compile(r"CHANGELOG\.md|README\.md|CONTRIBUTING\.md|docs/[^/]+\.md|(?:%s)/README\.md" % "|".join((*tree.LAYERS, "deploy")))

# Where comments are looked at.
COMMENTED = (*(folder + "/" for folder in tree.LAYERS), "tests/bench/", "tests/conformance/", "tests/fuzz/", "tests/tools/", "tests/unit/api/",
             "tests/unit/base/", "tests/unit/daemon/", "tests/unit/jobs/", "tests/unit/models/", "tests/unit/pipeline/", "tests/unit/storage/")

WORDS = {
    r"whole": "complete, per-tensor",
    r"most": "maximum, nearly all, largest",
    r"least": "minimum, smallest",
    r"behind": "after",
    r"besides?": "next to, together with, also",
    r"anew": "again",
    r"hops?|hopped": "dispatch",
    r"rooms?": "space, capacity",
    r"seals?|sealed|settles?|settled": "finalize, finish",
    r"truths?": "reference",
    r"blast": "error scope",
    r"mends?|mended": "fix",
    r"chains?": "activation store",
    r"flows?": "microbatches",
    r"sites?": "input group",
    r"kept apart": "held out, stored separately",
    r"held back": "held out, suspended",
    r"held-back": "held-out",
    r"floors?": "layer, lower bound",
    r"faces?": "public header",
    r"house": "layers",
    r"(?<!there\s)(?:is|are|be) no(?! longer)": "is not a",
    r"gotten": "actual",
    r"pinch|aloud|kin|oracles?": "plain words",
    r"roofs?": "peak",
    r"front door": "argument checks",
    r"as (?:it|they) stands?": "unchanged",
    r"without a word": "without a warning",
    r"makes? up for": "compensate for",
    r"goes on|go on|going on": "continue",
    r"looked for|looks for|look for": "search for",
    r"gives? up|given up": "release, stop",
}

# Of these, words that comments may not have either.
ALWAYS = {
    r"whole", r"behind", r"besides?", r"anew", r"hops?|hopped", r"seals?|sealed|settles?|settled", r"truths?", r"blast", r"mends?|mended",
    r"chains?", r"sites?", r"kept apart", r"floors?", r"faces?", r"house", r"(?<!there\s)(?:is|are|be) no(?! longer)", r"gotten",
    r"pinch|aloud|kin|oracles?", r"roofs?", r"front door", r"without a word",
}

# Phrases in which a listed word is the word of the field: the phrase as it is written, and why.
ALLOWED = {
    "Hugging Face": "a name",
    "at most": "the usual phrase for an upper bound",
    "at least": "the usual phrase for a lower bound",
    "least squares": "the method's name",
    "flow control": "TCP's term",
    "certificate chain": "of TLS",
    "other sites": "of the web",
    "another site": "of the web",
}

CODE = re.compile(r"^(?:```.*?^```$|<!-- operations.*?<!-- end of operations -->)|`[^`\n]*`|\]\([^)\n]*\)", re.M | re.S)
COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)+\'|(/\*.*?\*/|//[^\n]*)', re.S)

QUOTED = re.compile(r'"[^"\n]*"')


def pattern(word):
    return re.compile(r"(?<![\w-])(?:%s)(?![\w-])" % word.replace(" ", r"\s+"), re.I)


PATTERNS = [(pattern(word), use) for word, use in WORDS.items()]
COMMENT_PATTERNS = [(pattern(word), use) for word, use in WORDS.items() if word in ALWAYS]
PHRASES = re.compile("|".join(r"\b%s\b" % re.escape(phrase).replace(r"\ ", r"\s+") for phrase in ALLOWED), re.I)


def blank(match):
    """As long as what it stands for, with its lines; no word runs across it."""
    return re.sub(r"[^\n]", "|", match.group(0))


def faults(text, patterns=PATTERNS):
    text = PHRASES.sub(blank, CODE.sub(blank, text))
    found = []
    for word, use in patterns:
        for match in word.finditer(text):
            found.append((text.count("\n", 0, match.start()) + 1, " ".join(match.group(0).split()), use))
    return sorted(found)


def comment_faults(text):
    """Of a C file: everything but its comments is blank, and so are the stars at the beginning of their lines."""
    at, kept = 0, []
    for match in COMMENT.finditer(text):
        kept.append(re.sub(r"[^\n]", " ", text[at:match.start()]))
        comment = match.group(1) and QUOTED.sub(blank, match.group(1))
        kept.append(re.sub(r"[^\n]", " ", match.group(0)) if comment is None else re.sub(r"(?m)^\s*\*", lambda m: " " * len(m.group(0)), comment))
        at = match.end()
    return faults("".join(kept), COMMENT_PATTERNS)


def self_test():
    for bad in ["The whole job.", "Behind it", "a mended file", "It is no\nerror.", "the most\nuseful", "x\n\nThe floor above", "held\nback"]:
        assert faults(bad), bad
    for good in ["```\nroom\n```\n", "`whole`", "at\nmost 3", "wholesale", "least squares", "TCP flow control", "[a](#the-site)",
                 "is not an error", "`a` holds `b`", "is none", "is no longer open", "There is no authentication", "as it is stored"]:
        assert not faults(good), (good, faults(good))
    assert faults("```\nroom\n```\n\n`room`\nroom\n")[0][0] == 6
    assert ALWAYS <= set(WORDS)
    for bad in ["x = 1; /* the whole file */", "/* It\n * is no\n * error. */", "// behind it\n", 'f("a\\"b"); /* the seal */']:
        assert comment_faults(bad), bad
    for good in ['f("the whole file");', "int whole; /* at most 3 */", "/* there is no file */", "/* `behind`, \"behind\" */", "c = '\"'; /* fine */ f(whole);"]:
        assert not comment_faults(good), (good, comment_faults(good))
    assert comment_faults("a\n\n/* one\n * whole */")[0][0] == 4
    for page in ["README.md", "docs/api.md", "gpu/README.md"]:
        assert PAGES.fullmatch(page), page
    for page in ["tests/bench/RESULTS.md", "docs/a/b.md"]:
        assert not PAGES.fullmatch(page), page


def main():
    self_test()
    root = sys.argv[1]
    names = tree.tracked(root)
    pages = [name for name in names if PAGES.fullmatch(name)]
    sources = [name for name in names if name.endswith((".c", ".h", ".inc", ".cu", ".cuh")) and name.startswith(COMMENTED)]
    failed = 0
    for found, look in [(pages, faults), (sources, comment_faults)]:
        for name in found:
            for line, word, use in look(tree.read(root, name)):
                print(f'{name}:{line}: "{word}": use {use}')
                failed += 1
    print(f"{len(pages)} pages and the comments of {len(sources)} files, {failed} words to replace")
    return 1 if failed or not pages or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
