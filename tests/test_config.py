"""Settings: preset, then file, then override; one clear line for whatever is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkuxnet.core.config import (
    MEANT,
    OTHERS_NAMES,
    Settings,
    flatten,
    load_settings,
    parse_override,
    presets,
    validate,
)
from dkuxnet.core.errors import UserError


def refusal(values: dict) -> str:
    with pytest.raises(UserError) as caught:
        validate(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def toml(folder: Path, text: str | bytes) -> Path:
    path = folder / "settings.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads_and_survives_the_way_through_json(preset):
    settings = load_settings(preset)
    assert validate(settings.model_dump(mode="json")) == settings


def test_the_default_preset_is_the_settings_own_defaults():
    assert load_settings() == load_settings("default") == Settings()


def test_an_unknown_preset_gets_the_near_match_and_the_list():
    with pytest.raises(
        UserError, match=r"unknown preset 'demmo'; did you mean 'demo'\? known: .*la-mini"
    ):
        load_settings("demmo")


def test_naming_another_method_or_network_leaves_the_options_of_the_one_before_behind(tmp_path):
    paper = load_settings("paper", overrides={"method.name": "supervised"})
    assert paper.method.name == "supervised" and not paper.method.model_extra
    config = toml(
        tmp_path, '[network]\nname = "dk-uxnet-tiny"\nwidths = [8, 8, 8, 8]\nqueries = 12\n'
    )
    other = load_settings(config=config, overrides={"network.dropout": 0.1, "network.name": "vnet"})
    assert other.network.model_extra == {"dropout": 0.1} and other.network.queries == 12
    same = load_settings("paper", overrides={"method.w_qd": 0.5})
    assert same.method.model_extra["w_qd"] == 0.5 and same.method.model_extra["form"] == "mse"


def test_later_sources_win(tmp_path):
    config = toml(tmp_path, "[train]\nsteps = 7\nlabelled_batch = 3\n[infer]\nbatch = 5\n")
    settings = load_settings("demo", config, {"train.steps": 9, "augment.weak.noise": 0.3})
    assert load_settings("demo").train.labelled_batch == 1
    assert (settings.train.steps, settings.train.labelled_batch, settings.infer.batch) == (9, 3, 5)
    assert settings.train.patch == (
        32,
        32,
        32,
    )  # of the preset: a section of the file does not replace its section
    assert settings.augment.weak.noise == 0.3
    assert settings.augment.strong == Settings().augment.strong


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"trian": {}}, ["unknown setting 'trian'", "did you mean 'train'"]),
        (
            {"train": {"step": 1}},
            ["unknown setting 'train.step'", "did you mean 'train.steps'", "train.lr"],
        ),
        *(
            (values, [f"did you mean '{meant}'?"])
            for meant, values in (
                ("train.lr", {"train": {"learning_rate": 1}}),
                ("train.lr", {"learning-rate": 1}),
                ("train.steps", {"train": {"epochs": 1}}),
                ("train.labelled_batch", {"train": {"batch_size": 1}}),
                ("data.workers", {"train": {"num_workers": 1}}),
            )
        ),
        (
            {"augment": {"weak": {"nois": 1}}},
            ["'augment.weak.nois'", "did you mean 'augment.weak.noise'"],
        ),
        (
            {"network": {"groups": [{"name": "a", "classes": [], "queries": 1, "query": 2}]}},
            ["'network.groups.0.query'", "did you mean 'network.groups.0.queries'"],
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_near_match(values, parts):
    message = refusal(values)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"train": {"lr": "fast"}}, ["train.lr", "'fast'"]),
        ({"train": {"lr": 0}}, ["train.lr", "greater than 0"]),
        ({"train": {"lr": float("inf")}}, ["train.lr", "finite"]),
        ({"augment": {"strong": {"noise": float("nan")}}}, ["augment.strong.noise"]),
        ({"train": {"steps": 2.5}}, ["train.steps", "2.5"]),
        ({"train": {"optimiser": "adam"}}, ["train.optimiser", "adamw", "'adam'"]),
        ({"train": {"patch": [16, 16]}}, ["train.patch"]),
        ({"train": {"patch": [16, 24, 0]}}, ["train.patch", "greater than or equal to 1"]),
        ({"network": {"strides": [[2, 2, 2]]}}, ["network.strides"]),
        ({"network": {"strides": [[2, 2, 3]] * 4}}, ["network.strides", "3"]),
        ({"train": 3}, ["train", "3"]),
        ({"data": {"labelled": 0}}, ["data.labelled", "0"]),
        ({"data": {"foreground_share": 1.5}}, ["data.foreground_share", "1.5"]),
        ({"augment": {"flip": "w"}}, ["augment.flip", "'w'"]),
        ({"infer": {"overlap": 1.0}}, ["infer.overlap", "1.0"]),
        ({"network": {"queries": 0}}, ["network.queries", "0"]),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values, parts):
    message = refusal(values)
    for part in parts:
        assert part in message


def test_the_names_of_others_stand_for_settings_that_there_are():
    settings = dict(flatten(Settings().model_dump()))
    assert settings.keys() >= OTHERS_NAMES.keys()
    assert not {f"train.{name}" for name in MEANT} & settings.keys()


def test_options_of_method_and_network_pass_for_them_to_judge():
    settings = validate({"method": {"name": "supervised", "own": 3}, "network": {"width": 8}})
    assert settings.method.model_extra == {"own": 3}
    assert settings.network.model_extra == {"width": 8}


@pytest.mark.parametrize(
    ("text", "part"), [("[train\n", "not a TOML file"), (b"\xff\xfe", "cannot read")]
)
def test_a_broken_file_is_refused_by_its_name(tmp_path, text, part):
    with pytest.raises(UserError, match=part) as caught:
        load_settings(config=toml(tmp_path, text))
    assert "settings.toml" in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            load_settings(config=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=0.01", ("train.lr", 0.01)),
        ("train.steps = 5", ("train.steps", 5)),
        ("train.patch=[16, 32, 16]", ("train.patch", [16, 32, 16])),
        ("method.ramp=true", ("method.ramp", True)),
        ("network.name=vnet", ("network.name", "vnet")),
        ("data.split=a=b.json", ("data.split", "a=b.json")),
        ('augment.flip=""', ("augment.flip", "")),
        ("augment.flip=", ("augment.flip", "")),
    ],
)
def test_overrides_are_read_as_toml_or_as_text(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.lr", "=3", " = 3", ""])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(UserError, match="key=value"):
        parse_override(text)


@given(st.text(max_size=30))
def test_any_override_gives_a_setting_or_a_user_error(text):
    try:
        key, value = parse_override(text)
        load_settings(overrides={key: value})
    except UserError as error:
        assert str(error)
