"""Images of every kind through the command line: 8192×4096 in bounded memory, panoramas, SwinIR's released naming."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.core.configs import CAMixerSRConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.data import to_tensor
from harness.data.images import read_rgb, write_png
from harness.export import load_bundle, load_network, read_bundle_config, upscale_image, write_bundle
from harness.metrics import get_protocol
from harness.models import PanoramaNetwork, build_model, load_weights, preset_config
from harness.models.literal.swinir import shift_mask
from harness.models.swinir import relative_position_index
from harness.profiling import canonical_macs
from harness.trial import to_image
from tests.cli.conftest import Call
from tests.export.test_bundle import SMALL, random_network, record_of
from tests.records import SHORT
from tests.tiny_pairs import cut

GIB = 2**30
QUICK = ("--repeats", "3", "--seconds", "0", "--no-reference", "--no-tracking", "--threads", "1")


def run_measured(*arguments: str | Path) -> tuple[str, int]:
    """Run a command in a fresh process with one thread; return its output and the most bytes that it held at once."""
    program = (
        "import sys; from pathlib import Path; from harness.cli import main\n"
        "sys.argv[0] = 'harness'\n"
        "try: main()\n"
        "finally: print(Path('/proc/self/status').read_text(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments), "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert peak is not None
    return done.stdout, 1024 * int(peak[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
def test_8192_by_4096_pixels_take_less_than_3_gib(reference: Path, tmp_path: Path) -> None:
    """Decoding, downscaling, tiles, output and scoring in one process; then a bundle upscales from file to file."""
    weights, large = reference / "weights" / "CAMixerSR_S.pth", reference / "images" / "large"
    evaluate: list[str | Path] = ["evaluate", "camixersr-s", "--weights", weights, "--data", large, "--gamma", "0.5"]
    output, peak = run_measured(*evaluate, "--protocol", "large", "--results", tmp_path / "results", "--json")
    document = json.loads(output)
    print(f"evaluate: peak {peak / GIB:.2f} GiB, {document['seconds']:.0f} s, {document['psnr_db']:.3f} dB")
    assert peak < 3 * GIB
    assert (document["protocol"], document["tile"], document["overlap"]) == ("large", 64, 4)
    assert document["attention_share"] == pytest.approx(0.5)  # 16 windows in each tile
    lr_files = [file for file in (tmp_path / "results" / "cache").iterdir() if "-lr-" in file.name]
    lr_HWC = np.load(lr_files[0])
    assert lr_HWC.shape == (1024, 2048, 3)
    write_png(tmp_path / "low.png", lr_HWC)
    network = build_model(preset_config("camixersr-s", 4)).eval()
    load_weights(network, weights)
    assert isinstance(network.config, CAMixerSRConfig)
    record, point = record_of(network.config)
    bundle = write_bundle(tmp_path / "bundle", network, record, point, picked_as="released", baselines={})
    _, peak = run_measured("upscale", bundle, tmp_path / "low.png", tmp_path / "high.png")
    print(f"upscale: peak {peak / GIB:.2f} GiB")
    assert peak < 3 * GIB
    assert read_rgb(tmp_path / "high.png").shape == (4096, 8192, 3)


@pytest.mark.slow
def test_panoramas_from_training_to_upscaling(call: Call, tmp_path: Path) -> None:
    for split, photograph in (("train", "coffee"), ("validation", "rocket")):
        write_png(tmp_path / split / f"{photograph}.png", cut(photograph, 64, 128))
    (tmp_path / "model.yaml").write_text("{family: camixersr, scale: 2, groups: [1], channels: 8, window: 4}")
    train = ["train", "model.yaml", "--train", "train", "--validation", "validation", "--out", "run", "--threads", "1"]
    short = ["--set", "steps=2", "--set", "batch_size=1", "--set", "hr_patch_size=32"]
    outcome = call(*train, *short, "--task", "odi", "--protocol", "light")
    assert "--protocol light: panoramas are scored by latitude" in outcome.mistake
    assert call(*train, *short, "--task", "odi").code == 0
    config = read_bundle_config(Path("run/bundle"))
    assert config.task == "odi"
    document = call(
        "evaluate", "run/bundle", "--data", "validation", "--protocol", "odi", "--threads", "1", "--json"
    ).document
    assert (document["protocol"], document["wrap"], document["tile"]) == ("odi", 32, None)
    assert document["seam_factor"] == 2  # 64 columns continued by 2 · 32
    too_far = call("evaluate", "run/bundle", "--data", "validation", "--protocol", "odi", "--wrap", "65").mistake
    assert "--wrap 65: the narrowest image has 64 low-resolution columns; expected no more" in too_far
    own_tile = call("evaluate", "bicubic", "--data", "validation", "--protocol", "large", "--overlap", "8", "--json")
    assert (own_tile.document["tile"], own_tile.document["overlap"]) == (64, 8)
    table = call("evaluate", "run/bundle", "--data", "validation", "--threads", "1").out
    assert "WS-PSNR (dB)" in table
    assert "continued by 32 columns at each side of the seam" in " ".join(table.split())
    network, image_HWC = load_network(Path("run/bundle")), cut("rocket", 64, 128)
    for option, wrap in (([], get_protocol("odi").wrap), (["--no-panorama"], 0)):
        outcome = call("upscale", "run/bundle", "validation/rocket.png", "out.png", "--overwrite", *option)
        assert outcome.code == 0
        assert ("32 columns at each side of the seam: ×1.500 of the cost" in outcome.out) == (wrap > 0)
        made_HWC = read_rgb(Path("out.png"))
        assert np.array_equal(made_HWC, upscale_image(network, image_HWC, wrap=wrap))
        loaded = load_bundle("run/bundle")
        assert isinstance(loaded, PanoramaNetwork)
        with torch.inference_mode():
            output_BCHW = (loaded if wrap else loaded.network)(to_tensor(image_HWC))
        assert np.array_equal(made_HWC, to_image(output_BCHW))
    with pytest.raises(UserError, match=r"input: 64×64 pixels are no whole panorama; .*`\.network`"):
        load_bundle("run/bundle")(torch.zeros(1, 3, 64, 64))
    document = call("profile", "run/bundle", "--input-size", "32", "64", "--json", *QUICK).document
    assert document["macs"] == canonical_macs(config.model, (32, 64))  # of the plain network: no seam, no panoramas


def test_what_is_no_whole_panorama_is_refused(call: Call, tmp_path: Path) -> None:
    """By every command that would weigh its rows by a latitude they do not have, or wrap it around; in one line."""
    write_png(tmp_path / "round" / "b.png", cut("coffee", 64, 128))
    write_png(tmp_path / "flat" / "a.png", cut("rocket", 60, 120))
    write_png(tmp_path / "flat" / "c.png", cut("rocket", 64, 96))
    write_png(tmp_path / "plain" / "d.png", cut("astronaut", 64, 96))
    what = "c.png: 96×64 pixels are no whole panorama; expected an equirectangular image, 2:1; "
    remedy = "crop or remove it, or do without task odi and protocol odi"
    assert f"{what}{remedy}" in call("evaluate", "bicubic", "--data", "flat", "--protocol", "odi").mistake
    (tmp_path / "model.yaml").write_text("{family: camixersr, scale: 2, groups: [1], channels: 8, window: 4}")
    train = ["train", "model.yaml", "--out", "run", "--threads", "1", "--set", "steps=1", "--set", "hr_patch_size=32"]
    assert what in call(*train, "--task", "odi", "--train", "flat", "--validation", "round").mistake
    assert what in call(*train, "--task", "odi", "--train", "round", "--validation", "flat").mistake
    assert what in call(*train, "--protocol", "odi", "--train", "round", "--validation", "flat").mistake
    odi = ["search", "odi_x4", "--no-tracking"]
    assert what in call(*odi, "--train", "flat", "--validation", "round").mistake
    assert what in call(*odi, "--train", "round", "--validation", "flat").mistake
    assert not Path("run").exists()
    # The task is what the network was trained for: a classic one may see any images and be scored on panoramas.
    classic = ["--protocol", "odi", "--train", "plain", "--validation", "round"]
    assert "fp16" in call(*train, *classic, "--set", "precision=fp16").mistake  # the next thing that is looked at
    network = random_network(SMALL)
    for name, task in (("odi", "odi"), ("classic", "classic")):
        record, point = record_of(SMALL, training=SHORT.model_copy(update={"task": task}))
        write_bundle(tmp_path / name, network, record, point, picked_as="knee", baselines={})
    assert f"{what}--no-panorama restores it as a plain image" in call("upscale", "odi", "flat", "out").mistake
    assert not Path("out").exists()  # a.png, a panorama, comes first, and waits for the others
    assert call("upscale", "odi", "flat", "out", "--no-panorama").code == 0
    assert "no whole panorama" in call("upscale", "classic", "flat/c.png", "c.png", "--panorama").mistake
    assert call("upscale", "classic", "flat/c.png", "c.png").code == 0


RELEASED = (  # ours → the released naming of SwinIR
    (r"^head\.", "conv_first."),
    (r"^embed_norm\.", "patch_embed.norm."),
    (r"^groups\.(\d+)\.blocks\.(\d+)\.", r"layers.\1.residual_group.blocks.\2."),
    (r"^groups\.(\d+)\.conv\.", r"layers.\1.conv."),
    (r"\.attention\.position_bias$", ".attn.relative_position_bias_table"),
    (r"\.attention\.", ".attn."),
    (r"\.mlp_hidden\.", ".mlp.fc1."),
    (r"\.mlp_out\.", ".mlp.fc2."),
    (r"^body_tail\.", "conv_after_body."),
    (r"^tail\.", "upsample.0."),
)


@pytest.mark.slow
def test_swinir_light_under_released_names_and_with_released_buffers(call: Call, tmp_path: Path) -> None:
    """A whole SwinIR-light, its masks of 64×64 inputs and index tables included, evaluated, profiled, in tiles too."""
    network = random_network(SwinIRConfig(scale=4), seed=2)
    state: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        for pattern, replacement in RELEASED:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    mask_NLL = shift_mask(64, 64, 8, 4)
    for layer in range(4):
        for block in range(6):
            prefix = f"layers.{layer}.residual_group.blocks.{block}"
            state[f"{prefix}.attn.relative_position_index"] = relative_position_index(8)
            if block % 2:
                state[f"{prefix}.attn_mask"] = mask_NLL
    assert sum(value.numel() for value in state.values() if value.is_floating_point()) == 929_628 + 12 * 64 * 64 * 64
    torch.save({"params": state}, tmp_path / "swinir.pth")
    write_png(tmp_path / "HR" / "coffee.png", cut("coffee", 92, 124))  # 23×31 pixels: no multiple of 8
    swinir = ["swinir-light", "--weights", "swinir.pth", "--threads", "1", "--json"]
    write_png(tmp_path / "panoramas" / "coffee.png", cut("coffee", 62, 124))
    for options in ([], ["--tile", "16", "--overlap", "4"], ["--protocol", "odi"], ["--protocol", "large"]):
        document = call("evaluate", *swinir, "--data", "panoramas" if "odi" in options else "HR", *options).document
        assert document["weights"] == "swinir.pth (params)"
        assert document["attention_share"] is None
        assert np.isfinite(document["psnr_db"])
    profile = call(
        "profile", *swinir, "--input-size", "23", "31", "--repeats", "3", "--seconds", "0", "--no-tracking"
    ).document
    assert profile["params"] == 929_628
    # 24×32 padded pixels, by hand: 27C + 24·(8C² + 128C) + 45C² + 27·16·C, C = 60
    assert profile["macs"] == 24 * 32 * (27 * 60 + 24 * (8 * 3600 + 128 * 60) + 45 * 3600 + 27 * 16 * 60)
    assert profile["counters_agree"]
