"""`eadem share` from files to files: a folder, the command line, and a real ALBERT."""

import errno
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import eadem
from eadem._share import matrices, read_plan
from eadem._share.attach import standing
from eadem._share.command import Asked, share_files
from eadem._share.files import open_model
from eadem.cli import main
from tiny_transformers import WORDS, ids, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny Llama, its tokenizer, and a text."""
    place = tmp_path_factory.mktemp("share")
    tiny("llama", layers=2).save_pretrained(place / "model")
    words = {f"w{i}": i for i in range(WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0").save_pretrained(
        place / "model"
    )
    text = " ".join(f"w{int(i)}" for i in ids(windows=60).reshape(-1))
    (place / "text.txt").write_text(text)
    return place


@pytest.fixture(scope="module")
def out(place):
    """What the command wrote."""
    words = ["share", str(place / "model"), "--calibrate", str(place / "text.txt")]
    words += ["--keep", "0.7", "--out", str(place / "out"), "--plain", "--length", "16"]
    with pytest.raises(SystemExit) as found:
        main([*words, "--windows", "24", "--recover", "3"])
    assert found.value.code == 0
    return place / "out"


def test_the_folder_holds_a_model_that_loads_with_and_without_eadem(out):
    x = ids(3, 2)
    model = LlamaForCausalLM(AutoConfig.from_pretrained(out)).eval()
    eadem.load(model, out / "theta.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(out / "plain").eval()
    assert not eadem.ties(plain)
    with torch.no_grad():
        assert torch.allclose(model(x).logits, plain(x).logits, atol=2e-4)
    found = json.loads((out / "metrics.json").read_text())
    full = sum(m.size for m in matrices(plain))
    assert found["full"] == full
    assert found["free"] <= 0.7 * full
    theta = {id(p): p.numel() for t in eadem.ties(model) for p in t.thetas}
    sites = {s for t in eadem.ties(model) for s in t.sites}
    rest = sum(m.size for m in matrices(plain) if m.site not in sites)
    assert sum(theta.values()) + rest == found["free"]
    assert found["recovered"] > 0
    assert len(found["methods"]) == 7


def test_a_fresh_process_gets_the_same_outputs(out, tmp_path):
    model = LlamaForCausalLM(AutoConfig.from_pretrained(out)).eval()
    eadem.load(model, out / "theta.safetensors")
    code = (
        "import sys, eadem, torch\n"
        "from transformers import AutoConfig, LlamaForCausalLM\n"
        "m = LlamaForCausalLM(AutoConfig.from_pretrained(sys.argv[1])).eval()\n"
        "eadem.load(m, sys.argv[1] + '/theta.safetensors')\n"
        "torch.save(m(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])"
    )
    x = ids(3, 2)
    torch.save(x, tmp_path / "x.pt")
    args = [str(out), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", code, *args], check=True, capture_output=True)
    with torch.no_grad():
        assert torch.equal(torch.load(args[2]), model(x).logits)


def test_the_plan_the_card_and_the_page_say_what_was_done(out):
    assert read_plan(out / "plan.toml").entries
    card = (out / "README.md").read_text()
    assert "| per-layer whitened SVD |" in card
    assert 'eadem.load(model, "theta.safetensors")' in card
    page = (out / "report.html").read_text()
    for what in ("reading 192", "writing with the cache"):  # 12 windows of 16
        assert f"| tokens a second, {what} |" in card
        assert f"tokens a second, {what}" in page
    titles = ("What each way of sharing costs", "Which layers want", "layer by layer")
    for title in (*titles, "The ties, and the evidence against each"):
        assert title in page
    found = json.loads((out / "metrics.json").read_text())
    entries = read_plan(out / "plan.toml").entries
    assert {sites for sites, _ in found["evidence"]} == {", ".join(e.sites) for e in entries}
    assert page.count('data-tip="model.layers.') == 14  # a square for each matrix
    assert not list(out.parent.glob("*.recovery"))


def test_a_written_plan_runs_again(place, out):
    asked = Asked(
        place / "model", place / "text.txt", plan=out / "plan.toml", windows=24, length=16
    )
    folder = place / "again"
    folder.mkdir()
    said = []
    found = share_files(asked, folder, place / "again.recovery", said.append)
    assert found.free == json.loads((out / "metrics.json").read_text())["free"]
    assert said == ["14 matrices, 18432 values, each used once"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--calibrate", "text.txt"], "is no model"),
        (["model", "--calibrate", "nothing.txt"], "cannot be read"),
        (["model", "--calibrate", "text.txt", "--length", "500"], "too short"),
        (
            ["model", "--calibrate", "text.txt", "--keep", "0.0001", "--length", "16"],
            "at least",
        ),
        (["model", "--calibrate", "text.txt", "--plan", "text.txt"], "no TOML"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_no_result(place, words, said, capsys):
    files = ("model", "nowhere", "text.txt", "nothing.txt")
    given = [str(place / w) if w in files else w for w in words]
    with pytest.raises(SystemExit) as found:
        main(["share", *given, "--out", str(place / "bad")])
    assert found.value.code == 2
    assert said in capsys.readouterr().err
    assert not (place / "bad").exists()


def test_a_real_albert_is_seen_to_be_shared():
    spec = find_spec("rxnmapper")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package rxnmapper, see data-dev.txt")
    folder = Path(spec.origin).parent / "models" / "transformers"
    (folder,) = folder.glob("albert*")
    model, _ = open_model(folder)
    found = standing(matrices(model))
    layers = model.config.num_hidden_layers
    assert found.shared
    assert (found.matrices, found.uses, found.untied) == (6, layers, layers * found.stored)
    window = torch.randint(5, model.config.vocab_size, (40, 24))
    before = sum(p.numel() for p in model.parameters())
    shared = eadem.share(model, 0.9, window, windows=(24, 8, 8), length=24, compare=False)
    after = sum(p.numel() for p in model.parameters())
    assert before - after == shared.full - shared.free > 0
    assert shared.test < 0.5


@pytest.mark.parametrize("where", ["theta", "plan", "page"])
def test_a_full_disk_leaves_nothing_half_written(place, out, where, monkeypatch, capsys):
    """An earlier whole result stays; the new one has no name of its own."""
    whole = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    names = {"theta": "os.replace", "page": "eadem._share.command.write_page"}
    if where == "plan":
        written = Path.write_text

        def write(self, *args, **kwargs):
            return full() if self.name == "plan.toml" else written(self, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", write)
    else:
        monkeypatch.setattr(names[where], full)
    words = ["share", str(place / "model"), "--calibrate", str(place / "text.txt")]
    words += ["--plan", str(out / "plan.toml"), "--windows", "24", "--length", "16"]
    for target in (out, place / "new"):
        with pytest.raises(SystemExit) as found:
            main([*words, "--out", str(target)])
        assert found.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        said = [line for line in lines if line.startswith("eadem: ")]
        assert len(said) == 1
        assert "space" in said[0]
    monkeypatch.undo()
    assert not (place / "new").exists()
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == whole
    for name in ("out.partial", "new.partial"):
        shutil.rmtree(place / name)


def test_scratch_files_that_find_no_room_are_one_line_too(place, monkeypatch, capsys):
    monkeypatch.setattr(
        "eadem._share.statistics.np.save",
        lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    words = ["share", str(place / "model"), "--calibrate", str(place / "text.txt")]
    words += ["--windows", "24", "--length", "16", "--out", str(place / "scratchless")]
    with pytest.raises(SystemExit) as found:
        main(words)
    assert found.value.code == 2
    assert "TMPDIR" in capsys.readouterr().err
    assert not (place / "scratchless").exists()
    shutil.rmtree(place / "scratchless.partial")


def test_the_command_goes_on_with_an_interrupted_recovery(place, monkeypatch, capsys):
    words = ["share", str(place / "model"), "--calibrate", str(place / "text.txt")]
    words += ["--plan", str(place / "out" / "plan.toml"), "--windows", "24", "--length", "16"]
    words += ["--recover", "30", "--out", str(place / "resumed")]
    taken = []
    step = torch.optim.AdamW.step

    def interrupted(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == 25:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(SystemExit) as found:
        main(words)
    assert found.value.code == 130
    assert (place / "resumed.recovery").is_file()
    assert not (place / "resumed").exists()
    with pytest.raises(SystemExit) as found:
        main(words)
    assert found.value.code == 0
    assert len(taken) == 25 + 10
    assert not (place / "resumed.recovery").exists()
    assert json.loads((place / "resumed" / "metrics.json").read_text())["recovered"] > 0


def test_the_command_recovers_on_the_models_own_samples_too(place, capsys):
    words = ["share", str(place / "model"), "--calibrate", str(place / "text.txt")]
    words += ["--plan", str(place / "out" / "plan.toml"), "--windows", "24", "--length", "16"]
    words += ["--own-samples", "6", "--out", str(place / "own")]
    with pytest.raises(SystemExit) as found:
        main(words)
    assert found.value.code == 2
    assert "--recover STEPS" in capsys.readouterr().err
    assert not (place / "own").exists()
    with pytest.raises(SystemExit) as found:
        main([*words, "--recover", "6"])
    assert found.value.code == 0
    assert json.loads((place / "own" / "metrics.json").read_text())["recovered"] > 0


def gguf(path):
    """A tiny Llama with a tokenizer of the letters a to z, as llama.cpp would store it."""
    package = pytest.importorskip("gguf")
    letters = [*"Ġabcdefghijklmnopqrstuvwxyz", "ab", "<s>"]
    writer = package.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(letters))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges(["a b"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(len(letters) - 1)
    generator = torch.Generator().manual_seed(0)

    def put(name, *shape):
        value = torch.randn(shape, generator=generator) / (3 if len(shape) == 2 else 1e6)
        writer.add_tensor(name, (value + (len(shape) == 1)).numpy())

    put("token_embd.weight", len(letters), 32)
    put("output.weight", len(letters), 32)
    put("output_norm.weight", 32)
    for layer in ("blk.0.", "blk.1."):
        for name, rows in {"q": 32, "k": 16, "v": 16, "output": 32}.items():
            put(f"{layer}attn_{name}.weight", rows, 32)
        put(layer + "ffn_gate.weight", 64, 32)
        put(layer + "ffn_up.weight", 64, 32)
        put(layer + "ffn_down.weight", 32, 64)
        put(layer + "attn_norm.weight", 32)
        put(layer + "ffn_norm.weight", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shared(*words):
    with pytest.raises(SystemExit) as found:
        main(["share", *map(str, words), "--length", "16", "--windows", "24"])
    assert found.value.code == 0


def test_a_gguf_file_is_shared(tmp_path):
    file = gguf(tmp_path / "tiny.gguf")
    text = tmp_path / "text.txt"
    text.write_text(" ".join("".join(chr(97 + i % 26) for i in row) for row in ids().tolist()))
    out = tmp_path / "out"
    shared(file, "--calibrate", text, "--keep", "0.7", "--out", out, "--plain")
    found = json.loads((out / "metrics.json").read_text())
    assert found["full"] == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert found["free"] <= 0.7 * found["full"]
    model = LlamaForCausalLM(AutoConfig.from_pretrained(out)).eval()
    eadem.load(model, out / "theta.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(out / "plain").eval()
    original = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name).eval()
    x = ids(3, 2) % 28
    with torch.no_grad():
        assert torch.allclose(model(x).logits, plain(x).logits, atol=1e-4)
        assert not torch.allclose(model(x).logits, original(x).logits, atol=1e-2)
    same = model.model.embed_tokens.weight, original.model.embed_tokens.weight
    assert torch.equal(*same)


def test_to_keep_everything_changes_nothing_on_the_command_line(place, tmp_path):
    out = tmp_path / "out"
    words = (place / "model", "--calibrate", place / "text.txt", "--keep", "1.0")
    shared(*words, "--out", out, "--plain")
    found = json.loads((out / "metrics.json").read_text())
    assert found["free"] == found["full"]
    assert found["test"] == pytest.approx(found["original"], rel=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(out / "plain").eval()
    with torch.no_grad():
        x = ids(3, 2)
        want = LlamaForCausalLM.from_pretrained(place / "model").eval()(x).logits
        assert torch.allclose(plain(x).logits, want, atol=1e-6)
