from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import skimage.data
from exported_network import SIZE, Exported
from PIL import Image

from purnet.errors import CheckpointError, OutOfMemoryError
from purnet.imaging import to_pixels
from purnet.inference import openvino_engine as openvino
from purnet.inference.openvino_engine import OpenVinoEngine
from purnet.inference.parity import mask_difference
from purnet.inference.torch_engine import reference_output

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module", params=[1, 2], ids=["one stream", "two streams"])
def engine(exported: Exported, request: pytest.FixtureRequest) -> OpenVinoEngine:
    if request.param > (os.cpu_count() or 1):
        pytest.skip("needs two processors")
    return openvino.load(exported.folder, threads=request.param)


def photos() -> np.ndarray:
    return np.stack(
        [to_pixels(Image.fromarray(getattr(skimage.data, name)()), SIZE) for name in PHOTOS]
    )


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_masks_are_those_of_eager_float32(exported: Exported, engine: OpenVinoEngine) -> None:
    expected = reference_output(exported.network, photos()).masks
    assert expected.std() > 20, "flat masks prove nothing"
    found = engine(photos())
    assert mask_difference(found.masks, expected).passes
    assert mask_difference(found.masks, expected).mean < 0.01
    assert found.finite.tolist() == [True] * len(PHOTOS)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_a_batch_of_any_size_equals_its_images_one_by_one(
    engine: OpenVinoEngine, count: int
) -> None:
    maps = engine(noise(count))
    assert (maps.masks.shape, maps.masks.dtype) == ((count, SIZE, SIZE), np.uint8)
    assert (maps.finite.shape, maps.finite.dtype) == ((count,), np.bool_)
    for index, image in enumerate(noise(count)):
        difference = engine(image[None]).masks[0].astype(int) - maps.masks[index]
        assert np.abs(difference).max() <= 1


def test_an_answer_outlives_the_next_call(engine: OpenVinoEngine) -> None:
    first = engine(photos())
    kept = first.masks.copy()
    engine(255 - photos())
    assert np.array_equal(first.masks, kept)


def test_pixels_are_left_as_they_were(engine: OpenVinoEngine) -> None:
    pixels = photos()
    engine(pixels)
    assert np.array_equal(pixels, photos())


class Compiled:
    """Stands for a compiled network: counts what it is given, marks images that begin with 0."""

    def __init__(self, error: Exception | None = None) -> None:
        self.images: list[int] = []
        """First samples, of images in the order in which they were computed."""
        self.error = error

    def create_infer_request(self) -> Compiled:
        return self

    def infer(self, inputs: list[np.ndarray], *, share_inputs: bool) -> list[np.ndarray]:
        assert share_inputs
        if self.error is not None:
            raise self.error
        (pixels,) = inputs
        assert len(pixels) == 1
        self.images.append(int(pixels[0, 0, 0, 0]))
        return [pixels[..., 0].copy(), pixels[:, 0, 0, 0] > 0]


def numbered(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).repeat(48).reshape(count, 4, 4, 3)


@pytest.mark.parametrize("streams", [1, 3])
def test_a_batch_is_computed_as_single_images(streams: int) -> None:
    latency_model, throughput_model = Compiled(), Compiled()
    maps = OpenVinoEngine(
        latency_model, throughput_model if streams > 1 else None, streams=streams
    )(numbered(11))
    assert sorted((throughput_model if streams > 1 else latency_model).images) == list(range(11))
    assert maps.masks[:, 0, 0].tolist() == list(range(11))
    assert maps.finite.tolist() == [False] + [True] * 10


def test_an_image_gets_all_threads_while_nothing_else_runs_and_else_a_stream() -> None:
    class Slow(Compiled):
        """While it computes its first image, the next one comes."""

        def infer(self, inputs: list[np.ndarray], *, share_inputs: bool) -> list[np.ndarray]:
            if not self.images:
                engine(numbered(3)[2:])
            return super().infer(inputs, share_inputs=share_inputs)

    latency_model, throughput_model = Slow(), Compiled()
    engine = OpenVinoEngine(latency_model, throughput_model, streams=2)
    engine(numbered(2)[1:])
    assert (latency_model.images, throughput_model.images) == ([1], [2])
    engine(numbered(4)[3:])
    assert (latency_model.images, throughput_model.images) == ([1, 3], [2])


def test_an_image_that_finds_the_only_stream_taken_is_computed_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, waits = threading.Event(), threading.Event()

    class Watched(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if self.empty():
                waits.set()
            return super().get(block, timeout)

    class Slow(Compiled):
        """Computes its first image until the next one waits."""

        def infer(self, inputs: list[np.ndarray], *, share_inputs: bool) -> list[np.ndarray]:
            begun.set()
            assert waits.wait(30)
            return super().infer(inputs, share_inputs=share_inputs)

    monkeypatch.setattr(openvino, "SimpleQueue", Watched)
    latency_model = Slow()
    engine = OpenVinoEngine(latency_model)
    first, second = (
        threading.Thread(target=engine, args=(numbered(number)[-1:],), daemon=True)
        for number in (1, 2)
    )
    first.start()
    assert begun.wait(30)
    second.start()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    assert latency_model.images == [0, 1]


def test_a_stream_is_free_again_after_a_failure() -> None:
    latency_model, throughput_model = Compiled(), Compiled(RuntimeError("no"))
    engine = OpenVinoEngine(latency_model, throughput_model, streams=2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no"):
            engine(numbered(4))
    throughput_model.error = None
    assert len(engine(numbered(4)).masks) == 4
    engine(numbered(1))
    assert latency_model.images == [0]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("Failed to allocate 41943040000 bytes of memory")],
)
def test_no_room_is_told_from_other_failures(error: Exception) -> None:
    with pytest.raises(OutOfMemoryError):
        OpenVinoEngine(Compiled(error))(noise(1))
    with pytest.raises(RuntimeError, match="another"):
        OpenVinoEngine(Compiled(RuntimeError("another failure")))(noise(1))


def test_output_that_is_not_finite_is_marked_and_empty(exported: Exported, tmp_path: Path) -> None:
    runtime = openvino.runtime()
    graph = runtime.Core().read_model(exported.folder / "model.xml")
    opset = runtime.opset13
    logits = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "IsFinite")
    source = logits.input_value(0)
    poisoned = opset.divide(source, opset.constant(np.float32(0)))
    for consumer in list(source.get_target_inputs()):
        consumer.replace_source_output(poisoned.output(0))
    poisoned.input(0).replace_source_output(source)
    runtime.save_model(graph, tmp_path / "model.xml")
    maps = openvino.load(tmp_path, threads=1)(photos())
    assert not maps.finite.any()
    assert not maps.masks.any()


def test_a_network_openvino_does_not_read_is_named(exported: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "export")
    (folder / "model.xml").write_text("<net/>")
    with pytest.raises(CheckpointError, match=r"model\.xml"):
        openvino.load(folder)


def test_it_loads_no_torch_and_tells_nobody(exported: Exported, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from purnet.inference.factory import load
predictor = load(Path(sys.argv[1]), device="cpu")
predictor.self_check()
loaded = [name for name in ("torch", "openvino_telemetry.main") if name in sys.modules]
assert not loaded, loaded
"""
    home = tmp_path / "home"
    home.mkdir()
    environment: dict[str, Any] = {**os.environ, "HOME": str(home), "CI": ""}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(exported.folder)],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert list(home.iterdir()) == []
