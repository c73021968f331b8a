"""`ofaseg subclasses`, as typed, against a real HTTP server and real models of a few weights."""

import json
import logging

import pytest
import torch

from ofaseg.cli import main
from ofaseg.commands import subclass_generation
from ofaseg.subclasses.label_set import load_label_set
from ofaseg.subclasses.providers import FileProvider
from tests.subclasses.conftest import endpoint  # noqa: F401  a fixture
from tests.subclasses.endpoint import KEY, good_names
from tests.subclasses.test_local_models import save_tokenizer

CLASSES = ("cat", "dog", "bus")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Sleeps between repetitions are noted, not slept; the generator gets `time.sleep` as a default, so it is replaced there."""
    defaults = list(subclass_generation.Generator.__init__.__defaults__)
    sleeps: list[float] = []
    monkeypatch.setattr(subclass_generation.Generator.__init__, "__defaults__", (defaults[0], sleeps.append, defaults[2]))
    return sleeps


@pytest.fixture
def generate(endpoint, tmp_path):  # noqa: F811
    def generate(*options):
        where = ["--base-url", endpoint.url, "--model", "toy", "--out", str(tmp_path / "out" / "set.json")]
        return main(["subclasses", "generate", "--class-names", ",".join(CLASSES), *where, *options])

    return generate


def test_generate_tells_the_cost_asks_and_writes(generate, endpoint, tmp_path, capsys):  # noqa: F811
    assert generate("--estimate", "--price-in", "2", "--price-out", "8", "--requests-per-minute", "1") == 0
    out = capsys.readouterr().out
    assert out.startswith("3 classes to ask for: about ") and "180 out, cost about 0.00" in out and "about 3 min" in out
    assert not endpoint.asked and not (tmp_path / "out" / "set.json").exists()
    assert generate("--num", "4", "--dataset", "toy photos", "--parameter", "seed=3", "--parameter", "max_tokens=null") == 0
    label_set = load_label_set(tmp_path / "out" / "set.json", CLASSES)
    assert label_set == {name: tuple(good_names(name)[:4]) for name in CLASSES}
    assert label_set.about["model"] == "toy" and label_set.about["parameters"] == {"temperature": 0.0, "seed": 3}
    assert label_set.about["dataset"] == "toy photos" and "{class}" in label_set.about["prompt"] and label_set.about["wanted"] == 4
    body = endpoint.requests[0][0]
    assert body["seed"] == 3 and "max_tokens" not in body and '"toy photos"' in body["messages"][0]["content"]
    assert "left out 'striped cat': beyond the 4 asked for" in capsys.readouterr().out


def test_an_incomplete_run_writes_no_set_and_the_next_one_asks_for_the_rest(generate, endpoint, tmp_path, capsys, no_waiting):  # noqa: F811
    endpoint.plan["dog"] = ["wrong_class"] * 3
    endpoint.plan["cat"] = ["busy"]
    assert generate() == 1
    out = capsys.readouterr().out
    assert "no answer: dog: the answer is about 'submarine', not 'dog'" in out and "is not written" in out
    assert no_waiting == [7] and not (tmp_path / "out" / "set.json").exists()
    before = len(endpoint.asked)
    assert generate() == 0
    assert endpoint.asked[before:] == ["dog"]
    out = capsys.readouterr().out
    assert "1 classes to ask for (2 more are answered already)" in out
    assert "3 of 3 classes have subclasses (1 requests, 2 from before)" in out
    assert len((tmp_path / "out" / "set.answers.jsonl").read_text().splitlines()) == len(endpoint.asked)
    assert generate() == 0 and len(endpoint.asked) == before + 1  # all is known


def test_missing_classes_can_be_filled_with_their_names(generate, endpoint, tmp_path):  # noqa: F811
    endpoint.plan["dog"] = ["no_text"] * 2
    assert generate("--fill-missing", "--retries", "1") == 1
    label_set = load_label_set(tmp_path / "out" / "set.json", CLASSES)
    assert label_set["dog"] == ("dog",) and label_set["cat"] == tuple(good_names("cat"))
    assert label_set.about["filled_with_class_name"] == ["dog"]


@pytest.mark.parametrize(
    "behaviours",
    [["wrong_key"], ["echo_the_key", "cut_off_body", "hang_up", "broken"], ["error_with_half_the_key", "elsewhere"], ["no_quota"]],
)
@pytest.mark.parametrize("debug", [False, True])
def test_the_key_is_in_no_file_and_no_log(generate, endpoint, tmp_path, capfd, caplog, behaviours, debug):  # noqa: F811
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, name)
    endpoint.plan = {"cat": list(behaviours), "dog": ["echo_the_key"]}
    generate(*["--debug"] * debug)
    assert endpoint.requests and all(headers["authorization"] == f"Bearer {KEY}" for _, headers in endpoint.requests)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    out, err = capfd.readouterr()
    told = [out, err, caplog.text, *(str(record.__dict__) for record in caplog.records), *(path.read_text() for path in written)]
    assert written and not [text for text in told if KEY in text or KEY[:8] in text]


def test_ctrl_c_keeps_what_was_answered(tmp_path, monkeypatch, capsys):
    (tmp_path / "answers.json").write_text(json.dumps({name: good_names(name) for name in CLASSES}))
    complete, asked = FileProvider.complete, []

    def interrupted(self, class_name, prompt):
        asked.append(class_name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return complete(self, class_name, prompt)

    monkeypatch.setattr(FileProvider, "complete", interrupted)
    command = ["subclasses", "generate", "--class-names", ",".join(CLASSES), "--provider", "file"]
    command += ["--model", str(tmp_path / "answers.json"), "--out", str(tmp_path / "s.json")]
    assert main(command) == 130
    assert "the same command goes on from there" in capsys.readouterr().out and not (tmp_path / "s.json").exists()
    assert main(command) == 0
    assert asked == ["cat", "dog", "dog", "bus"] and list(load_label_set(tmp_path / "s.json")) == list(CLASSES)


def test_a_missing_key_or_file_is_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="the extra `llm` is not installed")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    start = ["subclasses", "generate", "--class-names", "cat", "--out", str(tmp_path / "s.json"), "--model"]
    assert main([*start, "toy"]) == 2
    assert capsys.readouterr().err.endswith("needs a key: set the environment variable OPENAI_API_KEY, or give --base-url\n")
    assert main([*start, str(tmp_path / "none"), "--provider", "transformers"]) == 2
    assert main([*start, str(tmp_path / "none"), "--provider", "file"]) == 2
    assert main([*start, "toy", "--base-url", "http://127.0.0.1:9/v1", "--parameter", "seed"]) == 2
    assert "--parameter 'seed': write KEY=VALUE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_answers_from_a_file_with_own_prompt_and_examples(tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps({"cat": ["tabby", "Manx_cat", "lynx"], "dog": ["pug", "beagle", "DOG", "hound"]}))
    (tmp_path / "prompt.txt").write_text("{m} kinds of {class} such as {examples}")
    (tmp_path / "examples.json").write_text(json.dumps({"cow": ["Jersey cow"]}))
    files = dict(model="answers.json", out="s.json", template="prompt.txt", examples="examples.json", answers="a.jsonl")
    options = [text for name, file in files.items() for text in (f"--{name}", str(tmp_path / file))]
    assert main(["subclasses", "generate", "--class-names", "cat,dog", "--provider", "file", *options]) == 0
    assert load_label_set(tmp_path / "s.json") == {"cat": ("tabby", "Manx cat", "lynx"), "dog": ("pug", "beagle", "hound")}
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == '10 kinds of cat such as {"cow": ["Jersey cow"]}'


@pytest.fixture
def label_set(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"table": ["Picnic_table", "desk (small)", "desk"], "cat": ["red cat", "old cat", "old cat"]}))
    return path


def test_clean(label_set, tmp_path, capsys):
    out, report = tmp_path / "clean.json", tmp_path / "report.json"
    options = ["--rename", "table=diningtable", "--class-names", "cat,diningtable", "--report", str(report)]
    assert main(["subclasses", "clean", str(label_set), "--out", str(out), *options]) == 0
    assert json.loads(out.read_text()) == {"cat": ["red cat", "old cat"], "diningtable": ["Picnic table", "desk"]}
    assert [change["before"] for change in json.loads(report.read_text())] == ["old cat", "Picnic_table", "desk (small)", "desk"]
    assert "2 classes, 4 subclasses, 2 to 2 a class" in capsys.readouterr().out
    assert main(["subclasses", "clean", str(label_set), "--out", str(out), "--keep-duplicates"]) == 0
    assert json.loads(out.read_text())["cat"] == ["red cat", "old cat", "old cat"]
    assert main(["subclasses", "clean", str(label_set), "--out", str(out), "--rename", "table"]) == 2


def test_check_exits_with_1_when_there_is_something_to_do(label_set, tmp_path, capsys):
    assert main(["subclasses", "check", str(label_set)]) == 1
    out = capsys.readouterr().out
    assert "to clean: table: 'Picnic_table' -> 'Picnic table'" in out and "doubtful: 'old cat' stands 2 times, in cat" in out
    assert out.endswith("2 classes, 6 subclasses, 3 to 3 a class; 4 names to clean, 1 doubtful\n")
    assert main(["subclasses", "clean", str(label_set), "--out", str(tmp_path / "clean.json")]) == 0
    assert main(["subclasses", "check", str(tmp_path / "clean.json"), "--class-names", "cat,table"]) == 0
    assert main(["subclasses", "check", str(label_set), "--class-names", "cat,dog"]) == 2
    assert "no entry for 'dog'; has classes that are not asked for: 'table'" in capsys.readouterr().err


def save_sentence_encoder(folder):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    save_tokenizer(folder)


def test_filter_with_a_local_encoder(tmp_path, capsys):
    """The tokenizer knows few words: names of unknown ones are all alike to it."""
    save_sentence_encoder(tmp_path / "encoder")
    source, out, report = tmp_path / "set.json", tmp_path / "out.json", tmp_path / "report.json"
    names = {"cat": ["red cat", "tabby", "lynx", "old dog"], "old dog": ["red dog", "pug", "old red dog"]}
    source.write_text(json.dumps({"_about": {"model": "toy"}, **names}))
    options = ["--encoder", f"{tmp_path / 'encoder'}=2", "--near-duplicate", "0.9999", "--other-superclass", "0.9999", "--keep", "2"]
    assert main(["subclasses", "filter", str(source), "--out", str(out), *options, "--report", str(report), "--device", "cpu"]) == 0
    left = load_label_set(out)
    assert left == {"cat": ("red cat", "tabby"), "old dog": ("red dog", "pug")} and left.about["filtered"]["near_duplicate"] == 0.9999
    removed = [(entry["name"], entry["filter"]) for entry in json.loads(report.read_text())]
    assert removed == [("old dog", "other_superclass"), ("lynx", "near_duplicate"), ("old red dog", "keep")]
    assert "3 names removed; 2 classes, 4 subclasses, 2 to 2 a class" in capsys.readouterr().out


def test_filter_with_the_text_tower_of_a_checkpoint(tmp_path, label_set, monkeypatch):
    from ofaseg.models.simseg import SimSeg, architecture_config

    monkeypatch.setenv("OFASEG_CACHE", "")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "old", "cat", "table", "desk", "picnic"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    config = architecture_config("simseg_nano", vocab_size=len(words))
    model = SimSeg(config, len(words))
    cfg = {"model": {**vars(config), "_name": "simseg_nano"}, "task": {"_name": "dense_segmentation"}}
    torch.save({"model": model.state_dict(), "cfg": cfg}, tmp_path / "m.pt")
    out, report = tmp_path / "out.json", tmp_path / "report.json"
    options = ["--checkpoint", str(tmp_path / "m.pt"), "--bpe-dir", str(tmp_path), "--near-duplicate", "0.9999", "--device", "cpu"]
    label_set.write_text(json.dumps({"table": ["desk", "sideboard", "escritoire"], "cat": ["red cat", "old cat"]}))  # two unknown words
    assert main(["subclasses", "filter", str(label_set), "--out", str(out), *options, "--report", str(report)]) == 0
    assert load_label_set(out) == {"table": ("desk", "sideboard"), "cat": ("red cat", "old cat")}
    assert json.loads(report.read_text())[0]["reason"].startswith("similarity 1.000 to 'sideboard'")
    assert main(["subclasses", "filter", str(label_set), "--out", str(out), *options[4:]]) == 2  # without an encoder


def test_filter_needs_a_filter(label_set, tmp_path, capsys):
    assert main(["subclasses", "filter", str(label_set), "--out", str(tmp_path / "o.json")]) == 2
    assert "no filter: give --outlier" in capsys.readouterr().err
    assert main(["subclasses", "filter", str(label_set), "--out", str(tmp_path / "o.json"), "--outlier", "0.4"]) == 2
    assert "no text encoder: give --encoder" in capsys.readouterr().err
    assert main(["subclasses", "filter", str(label_set), "--out", str(tmp_path / "o.json"), "--outlier", "0.4", "--encoder", "x=y"]) == 2
    assert "'y' is no weight" in capsys.readouterr().err
