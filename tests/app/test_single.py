"""What `wootz serve MODEL` makes of the platform's config."""

from __future__ import annotations

from pathlib import Path

import pytest

from wootz.app.single import single_model
from wootz.core import Config, ModelConfig, NotFoundError
from wootz.core.sections import SamplingConfig
from wootz.store import ModelStore


def test_a_model_that_the_config_knows_keeps_its_sampling_defaults(tmp_path: Path, tiny_model_folder: Path) -> None:
    source, sampling = f"file:{tiny_model_folder}", SamplingConfig(temperature=0.2)
    config = Config(home=tmp_path, models={"tiny": ModelConfig(source=source, sampling=sampling)})
    ModelStore(config.models_dir).pull(source, name="tiny")
    for model in ("tiny", source):
        single = single_model(config, model, None)
        assert list(single.models) == ["tiny"]
        assert single.models["tiny"].sampling == sampling
    (unknown,) = single_model(config, str(tiny_model_folder), "mine").models.items()
    assert (unknown[0], unknown[1].sampling) == ("mine", SamplingConfig())
    with pytest.raises(NotFoundError):
        single_model(config, "nobody", None)
