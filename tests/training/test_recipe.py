"""A recipe is complete, survives its file, and refuses what it does not know."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from resnext.errors import UserError
from resnext.training import recipe
from resnext.training.recipe import Recipe

SMALL = {
    "network": "cifar_resnet20",
    "epochs": 2,
    "batch_size": 4,
    "data": {"image_size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "optimizer": {"learning_rate": 0.1},
}


@pytest.mark.parametrize("name", sorted(recipe.published()))
def test_each_published_recipe_is_valid_and_survives_its_own_toml(name: str) -> None:
    complete = Recipe.from_dict(recipe.load(name))
    assert Recipe.from_dict(tomllib.loads(complete.to_toml())) == complete


def test_toml_keeps_awkward_strings_and_numbers() -> None:
    tree = {"a": 'quote " backslash \\ newline \n tab \t ünïcode \x7f', "b": 1e-30, "c": True, "d": {"e": [1, 2.5]}}
    assert tomllib.loads(recipe.to_toml(tree)) == tree


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"epoch": 3}, r"unknown key 'epoch'.*Did you mean 'epochs'"),
        ({"optimizer": {"learning_rat": 1}}, r"unknown key 'optimizer.learning_rat'.*'learning_rate'"),
        ({"augmentation": {"flipp": 1}}, r"unknown key 'augmentation.flipp'.*'flip'"),
        ({"optimizer": 3}, r"optimizer is a section"),
        ({"epochs": 0}, r"epochs: .*greater than or equal to 1"),
        ({"schedule": {"name": "step"}}, r"milestones"),
        ({"augmentation": {"flip": 2.0}}, r"flip is 2.0"),
        ({"data": {"resize": 16}}, r"resize"),
        ({"data": {"early_size": 64, "early_epochs": 1}}, r"early_size"),
        ({"data": {"early_size": [16, 64], "early_epochs": [1, 1]}}, r"early_size"),
        ({"data": {"early_size": [16, 24], "early_epochs": [1]}}, r"as many"),
        ({"data": {"early_size": [0], "early_epochs": [1]}}, r"early_size.*greater than or equal to 1"),
        ({"data": {"cache_gib": float("inf")}}, r"cache_gib"),
        ({"optimizer": {"learning_rate": float("inf")}}, r"learning_rate"),
        ({"optimizer": {"betas": [2.0, -1.0]}}, r"betas"),
        ({"schedule": {"name": "step", "milestones": [-3, -1]}}, r"milestones"),
        ({"batch_size": 10**20}, r"batch_size"),
        ({"augmentation": {"rand_augment": 10**20}}, r"rand_augment"),
        ({"data": {"std": [0.1, 0.1, 0.0]}}, r"std"),
        ({"initialisation": "he"}, r"initialisation: .*'he-fan-out'"),
        ({"optimizer": {"name": "rmsprop", "rho": 1.0}}, r"rho"),
        ({"optimizer": {"name": "rmsprop", "epsilon": 0}}, r"epsilon"),
        ({"schedule": {"name": "exponential"}}, r"needs every"),
        ({"schedule": {"name": "plateau", "patience": 0}}, r"patience"),
        ({"schedule": {"name": "step", "milestones": [1], "warmup_rate": 0.1}}, r"needs an end"),
        ({"schedule": {"name": "constant", "warmup_until_error": 0.8}}, r"needs warmup_rate"),
        (
            {"schedule": {"name": "cosine", "warmup_rate": 0.1, "warmup_until_error": 0.8, "warmup_epochs": 1}},
            r"needs an end",
        ),
        ({"schedule": {"warmup_rate": 0.1, "warmup_epochs": 1}}, r"one-cycle rises by itself"),
        (
            {"schedule": {"name": "constant", "warmup_rate": 0.1, "warmup_until_error": 0.8}}
            | {"augmentation": {"mixup": 0.2}},
            r"^the recipe: warmup_until_error counts training errors",
        ),
    ],
)
def test_what_a_recipe_does_not_know_is_refused_by_name(raw: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe.from_dict(recipe.merge(SMALL, raw))


def test_later_layers_win_key_by_key() -> None:
    merged = recipe.merge(SMALL, recipe.nest({"image_size": 16, "learning_rate": 0.5, "epochs": None}))
    assert merged["data"] == {**SMALL["data"], "image_size": 16}
    assert merged["optimizer"] == {"learning_rate": 0.5}
    assert merged["epochs"] == 2


def test_missing_broken_and_misspelt_files(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("epochs = = 3")
    with pytest.raises(UserError, match="is not TOML"):
        recipe.load(tmp_path / "broken.toml")
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        recipe.load("digitz")


def test_every_ingredient_of_a_paper_s_recipe_survives_its_own_toml() -> None:
    raw = {
        "initialisation": "truncated-normal-0.1",
        "optimizer": {"name": "rmsprop", "rho": 0.9, "epsilon": 1.0},
        "schedule": {"name": "exponential", "every": 2, "factor": 0.94, "warmup_rate": 0.1, "warmup_until_error": 0.8},
    }
    complete = Recipe.from_dict(recipe.merge(SMALL, raw))
    assert Recipe.from_dict(tomllib.loads(complete.to_toml())) == complete
    deciding = complete.deciding()
    assert deciding["initialisation"] == "truncated-normal-0.1"
    assert deciding["schedule"]["warmup_until_error"] == 0.8
