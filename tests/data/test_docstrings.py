"""The embedded corpora: what is read of a package, and that it is the same everywhere."""

import hashlib
import importlib
import re
from pathlib import Path

import pytest

from lookupffn.data.corpus import packages
from lookupffn.data.corpus.python_text import normalised
from lookupffn.errors import UserError
from tests.data.reading import open_corpus, prepare_data

from .conftest import sentences

REPOSITORY = Path(__file__).parents[2]
# They may change only with PINNED or VERSION: results of others rest on them.
FINGERPRINTS = {
    ("docstrings", "train"): "15fcc1d75205dde50c1689c54a247ace",
    ("docstrings", "validation"): "ea0ebbe1509861d745d1c419490341a4",
    ("comments", "train"): "1b5dc766b9532d28f4fb90a7dcce2e97",
    ("comments", "validation"): "044125809f41829e485de2173ec7bd35",
}
TEXTS = {
    ("docstrings", "train"): "cfb3a60c26f325423affa99077e7849d",
    ("docstrings", "validation"): "ad76bb4189f552118093c8ffa42b3d00",
    ("comments", "train"): "c575b2778151b666591ebd4d05ba0385",
    ("comments", "validation"): "20effe43ea04da3e080327845490abb4",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docstrings", "comments"])
def test_the_corpus_has_one_fingerprint_everywhere(tmp_path, caplog, kind):
    corpus = open_corpus({"name": kind}, tmp_path)
    found = {(kind, split): corpus.fingerprint(split) for split in ("train", "validation")}
    assert caplog.text == ""  # a package that is not as pinned would be named here
    assert found == {key: value for key, value in FINGERPRINTS.items() if key[0] == kind}
    assert corpus.name == kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docstrings", "comments"])
def test_the_corpus_has_one_text_everywhere(tmp_path, kind):
    corpus = open_corpus({"name": kind}, tmp_path)
    for split in ("train", "validation"):
        total = hashlib.sha256()
        for document in corpus.documents(split):
            total.update(document.encode() + b"\0")
        assert total.hexdigest()[:32] == TEXTS[kind, split]
    if kind == "docstrings":  # at least what the standard library and all packages used to give
        assert corpus.characters("train") + corpus.characters("validation") > 23_400_000


@pytest.mark.slow
def test_the_default_run_has_one_fingerprint_everywhere(tmp_path):
    """Text, tokenizer and packing: what summary.json of a default run says."""
    data = {"name": "docstrings", "sequence_length": 64}
    prepared = prepare_data(data, {"name": "trained", "vocab_size": 8192, "max_characters": 10**8}, tmp_path)
    assert prepared.tokenizer_fingerprint == "9fa75411d881c4f9e0d24f87b0ec2919"
    assert prepared.data_fingerprint == "cfaba986cd727b2e77fad6370022732a"


def test_pins_are_those_of_the_requirements():
    locked = {}
    for name in ("requirements.lock", "requirements.txt"):
        for line in (REPOSITORY / name).read_text().splitlines():
            if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
                key = match[1].lower().replace("_", "-")
                assert locked.setdefault(key, match[2]) == match[2]
    for name, (version, _) in packages.PINNED.items():
        assert locked[name.lower().replace("_", "-")] == version


# a stand-in for what is installed


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An installation of two small packages, pinned as they stand."""
    root = tmp_path / "site"
    for name in ("alpha", "beta"):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "module.py").write_text(f'"""The words of {name} are about rivers and birds in the winter."""\n')
        (root / f"{name}-1.0.dist-info").mkdir()
        (root / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        digest = packages.base64.urlsafe_b64encode(hashlib.sha256((folder / "module.py").read_bytes()).digest())
        record = f"{name}/module.py,sha256={digest.decode().rstrip('=')},90\n{name}-1.0.dist-info/METADATA,,\n"
        (root / f"{name}-1.0.dist-info" / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(packages, "PINNED", {})
    pins = {name: ("1.0", packages.installed(name).digest()) for name in ("alpha", "beta")}
    monkeypatch.setattr(packages, "PINNED", pins)
    return root


def open_docstrings(cache):
    return open_corpus({"name": "docstrings", "validation_fraction": 0}, cache, 1)


def test_packages_as_pinned(site, tmp_path, caplog):
    corpus = open_docstrings(tmp_path / "cache")
    assert len(list(corpus.documents("train"))) == 2 and corpus.name == "docstrings"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    (site / "other.py").write_text('"""Whatever else is installed does not count at all here."""')
    assert open_docstrings(tmp_path / "cache2").fingerprint("train") == corpus.fingerprint("train")


def other_version(site):
    metadata = site / "beta-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (other_version, "beta is 1.1, not 1.0"),
        (lambda site: (site / "beta-1.0.dist-info").rename(site / "gone"), "beta is not installed (1.0 is wanted)"),
        (lambda site: (site / "beta" / "module.py").write_text("x = 1\n"), "beta/module.py is not what beta 1.0"),
        (lambda site: (site / "beta" / "module.py").unlink(), "beta/module.py is not what beta 1.0"),
    ],
)
def test_another_package_gives_a_corpus_of_another_name(site, tmp_path, caplog, harm, named):
    expected = open_docstrings(tmp_path / "cache").fingerprint("train")
    harm(site)
    importlib.invalidate_caches()
    corpus = open_docstrings(tmp_path / "cache")
    assert corpus.fingerprint("train") != expected and corpus.name == "docstrings-custom"
    (warning,) = (record.getMessage() for record in caplog.records)
    assert named in warning and "docstrings-custom" in warning and "\n" not in warning
    assert list(corpus.documents("train"))


def test_what_is_in_the_cache_stays_what_it_is(site, tmp_path, caplog):
    first = open_docstrings(tmp_path / "cache")
    texts = list(first.documents("train"))
    other_version(site)
    importlib.invalidate_caches()
    caplog.set_level("INFO")
    again = open_docstrings(tmp_path / "cache")
    assert again.fingerprint("train") == first.fingerprint("train") and again.name == "docstrings"
    assert list(again.documents("train")) == texts
    assert "read from the cache" in caplog.text and "beta is 1.1, not 1.0" in caplog.text


def test_line_ends_do_not_count(site):
    path = site / "alpha" / "module.py"
    before = packages.installed("alpha").digest()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert packages.installed("alpha").digest() == before


def test_what_counts_as_source():
    kept = ["a/b.py", "a/b.pyx", "a/testing/c.py"]
    assert [name for name in kept if packages.is_source(name)] == kept
    for name in ("a/__init__.py", "a/tests/b.py", "a/test_b.py", "a/_version.py", "a/b.so", "../bin/x.py"):
        assert not packages.is_source(name)


# folders named by hand


@pytest.fixture
def folder(tmp_path):
    """A folder of forty modules whose docstrings share some text, beside files that cannot be read."""
    root = tmp_path / "packages"
    (root / "tests").mkdir(parents=True)
    (root / "tests" / "test_it.py").write_text('"""The text of the tests is not in the corpus at all."""')
    (root / "broken.py").write_text('"""Never closed')
    (root / "bytes.py").write_bytes(b'"""\xff\xfe is not what Python calls UTF-8."""\n')
    for i, sentence in enumerate(sentences(40)):
        (root / f"module_{i:02d}.py").write_text(
            f'"""{sentence}\n\nThis paragraph stands in every one of the files."""\n'
            f"def function():\n    '''Return the value of the thing named {'abcdefghij'[i % 10] * 3} as it was.'''\n"
            'PATTERN = "\\d"\nclass Thing:\n    """Short."""\n'
        )
    return root


def test_docstrings(folder, tmp_path, recwarn):
    corpus = open_corpus(
        {"name": "docstrings", "roots": [str(folder)], "validation_fraction": 0.2}, tmp_path / "cache", 2
    )
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    whole = "\n".join(train + validation)
    assert len(train) > len(validation) > 0
    assert whole.count("This paragraph stands in every one") == 1
    assert whole.count("named aaa as it was") == 1
    assert "not in the corpus" not in whole and "Short" not in whole
    lines = [{line for document in split for line in document.split("\n") if line} for split in (train, validation)]
    assert not lines[0] & lines[1]
    assert corpus.characters("train") == sum(map(len, train))
    assert not [warning for warning in recwarn if issubclass(warning.category, SyntaxWarning)]


def test_docstrings_do_not_depend_on_processes(folder, tmp_path):
    options = {"name": "docstrings", "roots": [str(folder)]}
    one, two = (open_corpus(options, tmp_path / f"cache{n}", n) for n in (1, 2))
    assert list(one.documents("train")) == list(two.documents("train"))
    assert one.fingerprint("train") == two.fingerprint("train") != one.fingerprint("validation")
    (folder / "new.py").write_text('"""Something that is new in the folder of packages."""')
    assert open_corpus(options, tmp_path / "cache1").fingerprint("train") != one.fingerprint("train")


def test_no_line_is_in_both_splits(tmp_path):
    """Modules that document the same parameters in different paragraphs, as scientific packages do."""
    root = tmp_path / "packages"
    shared = [f"shared{'abcdefghij'[i]} : the value that many functions take" for i in range(10)]
    for i, sentence in enumerate(sentences(60)):
        folder = root / f"part{i % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        other = "\n    ".join([shared[i % 10], shared[(i * 3 + 1) % 10], shared[i % 10].upper() + " 2"])
        own = f"and here a line of the module {sentence[:20]}."
        (folder / f"m{i}.py").write_text(f'def function():\n    """{sentence}\n\n    {other}\n    {own}\n    """\n')
    corpus = open_corpus({"name": "docstrings", "roots": str(root), "validation_fraction": 0.3}, tmp_path / "cache", 1)
    splits = [{normalised(line) for line in long_lines(corpus, split)} for split in ("train", "validation")]
    assert all(splits) and not splits[0] & splits[1]
    kept = {normalised(line) for line in shared}
    assert kept <= splits[0] | splits[1]  # once, not never


def long_lines(corpus, split):
    return [line for document in corpus.documents(split) for line in document.split("\n") if len(line) >= 24]


def test_unreadable_files_are_counted(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    list(open_corpus({"name": "docstrings", "roots": [str(folder)]}, tmp_path / "cache", 1).documents("train"))
    assert "1 files could not be read" in caplog.text


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        open_corpus({"name": "docstrings", "roots": [str(tmp_path / "none")]}, tmp_path)
