"""Kinds of training: which settings `fit` takes for each, what they ask of the network, and the step they make.

To add one, subclass `Training` and register an instance here, ``TRAININGS.add("name")(Kind())``; with settings, add
their keyword to ``fit``. Settings, fine-tuning, the loop and the model's record ask the entry.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, Generic, TypeVar

from xsuperres.config import AdversarialConfig, OptimizationConfig
from xsuperres.errors import ConfigError
from xsuperres.fields.channels import Channels
from xsuperres.nn.discriminator import DISCRIMINATORS, Discriminator, build_discriminator, discriminator_spec
from xsuperres.nn.network import NetworkSpec, SuperResolution
from xsuperres.registry import Registry
from xsuperres.training.adversarial import GAMES, AdversarialStep
from xsuperres.training.loop import Keep, Step
from xsuperres.training.supervised import SupervisedStep

__all__ = ["TRAININGS", "Adversarial", "Supervised", "Training"]

C = TypeVar("C")


class Training(ABC, Generic[C]):
    """One kind of training.

    Attributes
    ----------
    config : type or None
        Class of its settings; None if it has none.
    keyword : str or None
        Argument of ``fit`` that holds them.
    keep : {"best", "last"}
        Which average of the weights becomes the model: that with the best validation score, or the last one.
    """

    config: ClassVar[type | None] = None
    keyword: ClassVar[str | None] = None
    keep: ClassVar[Keep] = "best"

    def check(self, config: C, optimization: OptimizationConfig) -> None:
        """Refuse names that are not registered, and settings that contradict this kind, before any data are read."""
        return

    def noise(self, config: C) -> int:
        """Return how many channels of random numbers the network is shown."""
        return 0

    def opponent(self, spec: NetworkSpec, config: C, start: Discriminator | None) -> Discriminator | None:
        """Return what the network of `spec` is trained against: new, or a copy of `start`, that of ``init=``."""
        return None

    @abstractmethod
    def step(
        self,
        network: SuperResolution,
        opponent: Discriminator | None,
        channels: Channels,
        optimization: OptimizationConfig,
        config: C,
    ) -> Step:
        """Return what trains `network` by one batch after the other."""

    def recorded(self, config: C) -> dict[str, Any]:
        """Return the settings by their keyword, for the model's training record."""
        return {} if self.keyword is None else {self.keyword: asdict(config)}  # type: ignore[call-overload]


TRAININGS: Registry[Training[Any]] = Registry("training")


class Supervised(Training[None]):
    """Make the loss between prediction and target small."""

    def step(
        self,
        network: SuperResolution,
        opponent: Discriminator | None,
        channels: Channels,
        optimization: OptimizationConfig,
        config: None,
    ) -> Step:
        """Return a `SupervisedStep`."""
        return SupervisedStep(network, channels, optimization)


class Adversarial(Training[AdversarialConfig]):
    """Train against a discriminator, for sharper fields.

    These cost a little of the validation score, so the last average is the best one, unless the network collapsed.
    """

    config = AdversarialConfig
    keyword = "adversarial"
    keep = "last"

    def check(self, config: AdversarialConfig, optimization: OptimizationConfig) -> None:
        """Refuse unknown games and discriminators, and patience, which waits for a better score."""
        GAMES.canonical(config.loss)
        DISCRIMINATORS.canonical(config.discriminator)
        if optimization.patience is not None:
            raise ConfigError(
                f"patience={optimization.patience} waits for a better score, of which adversarial training gives "
                "up a little for sharper fields; leave it out: the last weights are kept, unless the network collapses."
            )

    def noise(self, config: AdversarialConfig) -> int:
        """Return the channels that make members differ."""
        return config.noise

    def opponent(self, spec: NetworkSpec, config: AdversarialConfig, start: Discriminator | None) -> Discriminator:
        """Return the discriminator.

        Raises
        ------
        ConfigError
            If that of ``init=`` is not the one that the settings ask for.
        """
        wanted = discriminator_spec(spec, config)
        if start is None:
            return build_discriminator(wanted)
        keys = {"name": "discriminator", "width": "width", "depth": "depth"}
        asked, given = asdict(wanted), asdict(start.spec)
        differing = [key for key in asked if asked[key] != given[key]]
        if differing:
            theirs, ours = ({keys.get(key, key): spec[key] for key in differing} for spec in (given, asked))
            raise ConfigError(
                f"init= was trained against a discriminator of {theirs}, this fit asks for {ours}; use "
                f"adversarial={theirs}, or save init without its discriminator."
            )
        return copy.deepcopy(start)

    def step(
        self,
        network: SuperResolution,
        opponent: Discriminator | None,
        channels: Channels,
        optimization: OptimizationConfig,
        config: AdversarialConfig,
    ) -> Step:
        """Return an `AdversarialStep`."""
        assert opponent is not None
        return AdversarialStep(network, opponent, channels, optimization, config)


TRAININGS.add("supervised")(Supervised())
TRAININGS.add("adversarial")(Adversarial())
