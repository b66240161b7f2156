"""Method blockwise: a generator's images are refined once, ranges are set by them, and block after block is fitted."""

from __future__ import annotations

import logging
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from ..config.compress import REFINING, TRACKING, WARM_UP, CompressConfig
from ..losses.reconstruction import MeanLoss
from ..quantization.activation_moments import image_moments, input_means
from ..quantization.calls import BATCHNORMS
from ..quantization.quantizers import observe_ranges
from ..runs.snapshots import State
from ..teacher.loading import Teacher
from .agreement import COPIES
from .drawn_images import DrawnImages
from .images import GeneratorImages, OnStep
from .lengths import Lengths
from .pace import ROUNDING_PASSES, UPDATE, Pace, few_images
from .reconstruction import BlockError, Rates, Reconstruction
from .refined_images import BATCH, from_pixels, refined, to_pixels

_log = logging.getLogger(__name__)

MEASURED_BLOCKS = 20
"""Agreement is measured after at most so many blocks, for it costs as much after a small block as after a large one."""
MEASURED_SHARE = 1 / 8
"""Agreement sees images at most this part as often as the blocks do; it is measured after the last one in any case."""
FEATURE_SPACE = 2**33
"""The features of one block, of the student and of the teacher, take at most so many bytes of a disk."""
FEATURE_MEMORY = 1 / 4
"""They take at most this part of a GPU's memory."""


class Blockwise:
    """The images of method ``blockwise`` and the blocks of its student, which learn in place.

    source: what makes the images before they are refined; measured: how many batches of them are held out.
    Raises InputError if the student is no graph.
    """

    fitted: Tensor | None = None
    """The images [N, C, H, W] that the blocks are fitted to."""
    held_out: Tensor | None = None
    """Others of their kind, which train nothing."""

    def __init__(
        self,
        config: CompressConfig,
        teacher: Teacher,
        student: nn.Module,
        source: GeneratorImages | DrawnImages,
        *,
        lengths: Lengths,
        measured: int,
    ) -> None:
        self.config, self.teacher, self.student, self.source = config, teacher, student, source
        self.lengths, self.measured = lengths, measured
        self.reconstruction = Reconstruction(student, real_means(teacher))

    @property
    def count(self) -> int:
        """Return the number of blocks."""
        return len(self.reconstruction.blocks)

    @cached_property
    def image_count(self) -> int:
        """Return how many images blocks are fitted to, as asked for or as many as have room."""
        asked, space = self.lengths.block_images, FEATURE_SPACE
        if self.teacher.device.type == "cuda":
            space = int(FEATURE_MEMORY * torch.cuda.get_device_properties(self.teacher.device).total_memory)
        most = self.reconstruction.images_within(space, self._zero_image())
        if most < asked:
            _log.info(
                "blocks are fitted to %d images in place of %d, for more features would not fit in %.2g GB",
                *(most, asked, space / 1e9),
            )
        return min(most, asked)

    def refine(self, on_step: OnStep) -> dict[str, float]:
        """Make all images and refine them; return L_r of those that blocks are fitted to, and its parts."""
        made = torch.cat([self.source.fixed(self.image_count), *self.source.held_out(self.measured)])
        made = refined(self.teacher, made, steps=self.updates, on_step=on_step)
        self.fitted, self.held_out = made[: self.image_count], made[self.image_count :]
        mean = MeanLoss()
        with torch.no_grad():
            for batch in self.fitted.split(self.config.batch_size):
                mean.add(self.source.objective(batch, self.teacher.observed(batch).argmax(1)))
        return mean.result("L_r of the refined images")

    @property
    def updates(self) -> int:
        """Return the updates of each image; none for a teacher without BatchNorm2d, whose statistics nobody knows."""
        norms = (module for module in self.teacher.network.modules() if isinstance(module, nn.BatchNorm2d))
        return self.lengths.refine_steps if any(norm.running_mean is not None for norm in norms) else 0

    @torch.no_grad()
    def track_ranges(self, on_step: OnStep) -> None:
        """Track the ranges of activations over the images that blocks are fitted to."""
        assert self.fitted is not None
        for batch in self.fitted.split(self.config.batch_size):
            with observe_ranges(self.student):
                self.student(batch)
            on_step()

    def learn(self, index: int, on_step: OnStep) -> BlockError:
        """Let block ``index`` learn, the next one; return its errors."""
        if not self.reconstruction.has_begun:
            assert self.fitted is not None
            self.reconstruction.begin(self.fitted, learned=index)
        return self.reconstruction.learn(
            index,
            steps=self.lengths.block_steps,
            batch_size=self.config.block_batch_size,
            rates=Rates(weights=self.config.block_rate),
            seed=self.config.seed,
            on_step=on_step,
        )

    def is_measured_after(self, index: int) -> bool:
        """Return True if agreement is measured after block ``index``; it always is after the last one."""
        learning = UPDATE * self.lengths.block_steps * self.config.block_batch_size + ROUNDING_PASSES * self.image_count
        measuring = 2 * COPIES * self.measured * self.config.batch_size  # two networks
        most = min(MEASURED_BLOCKS, max(int(MEASURED_SHARE * learning / measuring), 1))
        return (self.count - 1 - index) % -(-self.count // most) == 0

    def refining_steps(self) -> int:
        """Return how often ``on_step`` is called while images are refined."""
        return -(-(self.image_count + self.measured * self.config.batch_size) // BATCH) * self.updates

    def tracking_steps(self) -> int:
        """Return how often ``on_step`` is called while ranges are tracked."""
        return -(-self.image_count // self.config.batch_size)

    def seconds(self, pace: Pace) -> tuple[dict[str, float], list[float]]:
        """Return about how many seconds an epoch of each phase takes, and each block."""
        images = self.image_count + self.measured * self.config.batch_size
        phases = {
            WARM_UP: pace.warm_up_epoch(self.config, self.lengths),
            REFINING: pace.making(self.lengths, images=images),
            TRACKING: pace.forward(self.image_count),
        }
        seconds = self.reconstruction.block_seconds(few_images(self.teacher))
        blocks = pace.blocks(self.config, self.lengths)
        return phases, [blocks * own / sum(seconds) for own in seconds]

    def state(self) -> State:
        """Return the images, for :meth:`load`; the student has a state of its own."""
        images = {"fitted": self.fitted, "held_out": self.held_out}
        return {name: None if value is None else to_pixels(self.teacher, value) for name, value in images.items()}

    def load(self, state: State) -> None:
        """Load what :meth:`state` returned."""
        if state["fitted"] is not None:
            self.fitted, self.held_out = (from_pixels(self.teacher, state[name]) for name in ("fitted", "held_out"))

    def _zero_image(self) -> Tensor:
        return torch.zeros(1, *self.teacher.image, device=self.teacher.device)


def real_means(teacher: Teacher) -> dict[str, Tensor]:
    """Return the means of the inputs of layers over real images, which BatchNorms remember; none without BatchNorms."""
    graph = teacher.graph
    if not isinstance(graph, fx.GraphModule) or not any(isinstance(norm, BATCHNORMS) for norm in graph.modules()):
        return {}
    return input_means(graph, image_moments(teacher.image, teacher.pixel_range, device=teacher.device))
