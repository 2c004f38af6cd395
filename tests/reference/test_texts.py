import hashlib
import re

import pytest

from effbench.reference import texts
from effbench.reference.texts import Document

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def corpus():
    return texts.reference_corpus()


@pytest.fixture(scope="module")
def docs():
    return texts.split(texts.topics())


@pytest.fixture(scope="module")
def docstrings():
    return texts.split(texts.unseen_docstrings())


def words_in_a_row(documents, count=13):
    """Runs of words within paragraphs, as text: what two splits must not share (not the code under test)."""
    found = set()
    for document in documents:
        for paragraph in document.text.split("\n\n"):
            words = [word for word in paragraph.split() if word != "#"]
            found.update(" ".join(words[at : at + count]) for at in range(len(words) - count + 1))
    return found


def flat(documents):
    return re.sub(r"[\s#]+", " ", "\n".join(d.text for d in documents))


@pytest.mark.parametrize("which", ["docs", "docstrings"])
def test_splits_share_no_name_and_no_13_words(which, request):
    splits = request.getfixturevalue(which)
    names = [{d.name for d in part} for part in splits]
    runs = [words_in_a_row(part) for part in splits]
    assert all(names)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not names[a] & names[b]
        assert not runs[a] & runs[b]


def test_held_out_topics_are_not_in_the_training_corpus(corpus, docs):
    assert not words_in_a_row(corpus) & words_in_a_row(docs.test + docs.validation)


def test_unseen_docstrings_are_not_in_the_training_corpus(corpus):
    """Looked for in another way than they were removed: 80 characters from the middle of paragraphs, whitespace collapsed."""
    seen = flat(corpus)
    snippets = []
    for document in texts.unseen_docstrings():
        for paragraph in document.text.split("\n\n"):
            line = flat([Document("", paragraph)]).strip()
            if len(line) >= 160:
                snippets.append(line[len(line) // 2 - 40 : len(line) // 2 + 40])
    assert len(snippets) > 1000
    found = [snippet for snippet in snippets if snippet in seen]
    # Fewer than 13 words of shared prose may be left (a licence line, a signature); a document may not.
    assert len(found) / len(snippets) < 0.002, found[:10]


def test_docstrings_are_taken_out_of_the_source():
    kept = '# a comment\nclass A:\n    x = """kept"""\n    def f(self):\n        return 1'
    source = f'"""Module text."""\n{kept}'.replace("A:\n", 'A:\n    """Class\n    text."""\n').replace(
        "self):\n", "self):\n        'D.'\n"
    )
    file = texts._read("m", source)
    assert [(d.name, d.text) for d in file.docstrings] == [("m:", "Module text."), ("m:A", "Class\ntext."), ("m:A.f", "D.")]
    assert file.source.text == kept


def test_the_split_depends_on_the_name_alone():
    """Stable for ever: changing these would hold out what the shipped model was trained on."""
    assert [texts.split_of(name) for name in ("assert", "with", "typesseq", "formatstrings")] == [
        "validation",
        "test",
        "train",
        "train",
    ]
    shares = [texts.split_of(f"name {i}") for i in range(2000)]
    assert 0.17 < shares.count("test") / 2000 < 0.23
    assert 0.08 < shares.count("validation") / 2000 < 0.12


def test_quoted_paragraphs_are_dropped_from_the_split_nearer_to_training():
    def named(split):
        return next(n for n in (f"{split}{i}" for i in range(1000)) if texts.split_of(n) == split)

    quoted, own = " ".join(LETTERS), " ".join(reversed(LETTERS))
    splits = texts.split(
        [Document(named("train"), f"{own}\n\n{quoted}"), Document(named("validation"), quoted), Document(named("test"), quoted)]
    )
    assert [[d.text for d in part] for part in splits] == [[own], [], [quoted]]


def test_data_hash_sees_names_prompts_and_texts():
    base = Document("a", "text", "prompt")
    others = [Document("b", "text", "prompt"), Document("a", "txt", "prompt"), Document("a", "text", "")]
    assert len({texts.data_hash([d]) for d in [base, *others]}) == 4
    assert texts.data_hash([base]) == hashlib.sha256(b"a\0prompt\0text\0").hexdigest()[:16]
