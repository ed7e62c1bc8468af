import json
import string
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from sat_ssvae.config import Config, fingerprint, load_config, parse_config, settings_of
from sat_ssvae.errors import UserError


class Optimizer(Config):
    lr: float = Field(1e-4, gt=0)
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Moment decays."""


class Window(Config):
    kind: Literal["block", "channel"] = "block"
    """What is masked."""
    ratio: float = Field(0.2, ge=0, le=1)
    """Share that is masked."""


class Train(Config):
    name: str
    """Name of the run."""
    max_steps: int = Field(10, gt=0)
    """Steps."""
    optimizer: Optimizer = Optimizer()
    """Optimiser."""
    window: Window | None = None
    """Mask, if any."""
    sources: tuple[Window, ...] = ()
    """Several masks."""


def message_of(values: object, cls: type[Config] = Train) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(cls, values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(tmp_path, text: str | bytes):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_becomes_a_typed_object(tmp_path):
    path = written(tmp_path, "name: demo\noptimizer: {lr: 5e-5, betas: [0.5, 0.9]}\nwindow: {kind: channel}\n")
    config = load_config(Train, path)
    assert config == Train(name="demo", optimizer=Optimizer(lr=5e-5, betas=(0.5, 0.9)), window=Window(kind="channel"))
    assert isinstance(config.optimizer.lr, float)


def test_overrides_win_over_the_file_and_leave_the_rest(tmp_path):
    path = written(tmp_path, "name: demo\nmax_steps: 7\noptimizer: {betas: [0.5, 0.9]}\n")
    config = load_config(Train, path, ["optimizer.lr=0.01", "name=other", "window.ratio=0.5"])
    assert config == Train(
        name="other", max_steps=7, optimizer=Optimizer(lr=0.01, betas=(0.5, 0.9)), window=Window(ratio=0.5)
    )


def test_override_with_null_resets_an_optional_section(tmp_path):
    path = written(tmp_path, "name: demo\nwindow: {ratio: 0.1}\n")
    assert load_config(Train, path, ["window=null"]).window is None


def test_interpolation_is_resolved(tmp_path):
    path = written(tmp_path, "name: run-${max_steps}\nmax_steps: 5\n")
    assert load_config(Train, path).name == "run-5"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "x", "max_step": 3}, "unknown key `max_step`, did you mean `max_steps`?"),
        ({"name": "x", "optimizer": {"learn": 1, "Lr": 2}}, "unknown key `optimizer.Lr`, did you mean `optimizer.lr`?"),
        ({"name": "x", "window": {"ratios": 0.1}}, "unknown key `window.ratios`, did you mean `window.ratio`?"),
        (
            {"name": "x", "sources": [{}, {"knd": "block"}]},
            "unknown key `sources.1.knd`, did you mean `sources.1.kind`?",
        ),
        (
            {"name": "x", "zzz": 1},
            "unknown key `zzz`, known keys: max_steps, name, optimizer, sources, window",
        ),
        ({"name": "x", "optimizer": {"qqq": 1}}, "unknown key `optimizer.qqq`, known keys: betas, lr"),
        ({"name": "x", "betas": [0, 1]}, "unknown key `betas`, did you mean `optimizer.betas`?"),
        (
            {"name": "x", "optimiser": {"betas": [0, 1]}},
            "unknown key `optimiser.betas`, did you mean `optimizer.betas`?",
        ),
        ({"name": "x", "ratio": 1}, "unknown key `ratio`, did you mean `window.ratio`?"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(values, expected):
    assert expected in message_of(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "`name` is required"),
        ({"name": "x", "max_steps": 0}, "`max_steps` = 0: Input should be greater than 0"),
        ({"name": "x", "optimizer": {"lr": -1.0}}, "`optimizer.lr` = -1.0: Input should be greater than 0"),
        (
            {"name": "x", "window": {"ratio": 1.5}},
            "`window.ratio` = 1.5: Input should be less than or equal to 1",
        ),
        (
            {"name": "x", "window": {"kind": "chanel"}},
            "`window.kind` = 'chanel': Input should be 'block' or 'channel'",
        ),
        ({"name": "x", "max_steps": "many"}, "`max_steps` = 'many': Input should be a valid integer"),
        ({"name": "x", "optimizer": 3}, "`optimizer` = 3: "),
    ],
)
def test_value_that_does_not_fit_is_named(values, expected):
    assert expected in message_of(values)


def test_all_problems_are_reported_at_once():
    text = message_of({"max_step": 1, "optimizer": {"lr": 0}})
    assert "`name` is required" in text and "`max_step`" in text and "`optimizer.lr`" in text


def test_source_leads_the_message(tmp_path):
    path = written(tmp_path, "nam: demo\n")
    with pytest.raises(UserError, match=r"run\.yaml: .*unknown key `nam`, did you mean `name`\?"):
        load_config(Train, path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: [unclosed", "not a readable YAML configuration"),
        ("name: 'x\n\tb: 1", "not a readable YAML configuration"),
        (b"name: \xff\xfe\x00", "not a readable YAML configuration"),
        ("name: ${missing.key}\n", "not a readable YAML configuration"),
        ("- name\n- demo\n", "expected `key: value` lines at the top level, found a list"),
        ("just words\n", "unknown key `just words`"),
        ("42\n", "not a readable YAML configuration"),
        ("name: x\nname: y\n", "not a readable YAML configuration"),
        ("", "`name` is required"),
    ],
    ids=[
        "unclosed",
        "tab",
        "binary",
        "dangling reference",
        "list",
        "words",
        "number",
        "duplicate key",
        "empty",
    ],
)
def test_file_that_is_no_configuration(tmp_path, content, expected):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_config(Train, path)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(Train, tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="not a readable YAML configuration"):
        load_config(Train, tmp_path)


def test_a_value_that_the_user_must_give_is_asked_for(tmp_path):
    path = written(tmp_path, "name: ???\n")
    with pytest.raises(UserError, match=r"`name` must be given, for example name=\.\.\."):
        load_config(Train, path)


@pytest.mark.parametrize("override", ["max_steps", "=3", "[", "max steps=3", "optimizer..lr=1", ""])
def test_override_that_is_no_key_and_value_is_refused(tmp_path, override):
    path = written(tmp_path, "name: demo\n")
    with pytest.raises(UserError, match="expected key=value"):
        load_config(Train, path, [override])


@pytest.mark.parametrize(
    ("content", "override", "betas"),
    [
        ("name: x\noptimizer: {betas: [0.5, 0.9]}", "optimizer.betas.0=0.8", (0.8, 0.9)),
        ("name: x", "optimizer.betas.1=0.999", (0.9, 0.999)),
        ("name: x\noptimizer: {lr: 1}", "optimizer.betas.0=0.8", (0.8, 0.99)),
    ],
)
def test_an_override_reaches_an_item_of_a_list_that_the_file_or_the_defaults_hold(tmp_path, content, override, betas):
    assert load_config(Train, written(tmp_path, content), [override]).optimizer.betas == betas


def test_an_override_reaches_a_key_inside_an_item(tmp_path):
    path = written(tmp_path, "name: x\nsources: [{kind: block}, {kind: channel}]")
    assert load_config(Train, path, ["sources.1.ratio=0.7"]).sources[1] == Window(kind="channel", ratio=0.7)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.betas.5=1", "`optimizer.betas.5=1`: optimizer.betas has 2 items, counted from 0"),
        ("sources.0.ratio=1", "`sources.0.ratio=1`: sources has 0 items"),
        ("optimizer.betas.first=1", "`optimizer.betas"),
        ("name.0=1", "`name"),
        ("optimizer.betas.0.x=1", "`optimizer.betas"),
    ],
)
def test_an_override_into_no_item_of_a_list_is_one_line(override, expected):
    with pytest.raises(UserError) as caught:
        load_config(Train, None, ["name=x", override])
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_settings_are_listed_with_full_keys_and_the_defaults_that_hold_where_they_are_used():
    class Outer(Config):
        optimizer: Optimizer = Optimizer(lr=3.0)
        sources: tuple[Window, ...] = ()
        named: dict[str, Window] = Field(default_factory=dict)
        choice: Window | Optimizer = Window()

    found = {setting.key: setting for setting in settings_of(Outer)}
    assert found["optimizer.lr"].default == 3.0 and found["optimizer.lr"].description == "Learning rate."
    assert found["optimizer.betas"].default == [0.9, 0.99]
    assert {"sources.N.kind", "named.NAME.ratio", "choice.kind", "choice.betas"} <= set(found)
    assert found["optimizer"].is_section and not found["sources"].is_section


def test_misspelt_override_names_the_nearest_key(tmp_path):
    path = written(tmp_path, "name: demo\n")
    with pytest.raises(UserError, match="did you mean `max_steps`"):
        load_config(Train, path, ["max_stps=3"])


class Files(Config):
    path: str | tuple[str, ...] = ""
    """One path or several."""
    file: Path | None = None
    """A file, if any."""
    number: float | str = 0.0
    """A number or a name."""


@pytest.mark.parametrize(
    "name", ["2024", "007", "1e5", "yes", "12:30", "my: videos", "a #1", "[a] b", "@a", "*a", "a:", "# a", "'a' b"]
)
def test_a_path_is_taken_as_it_is_typed(name):
    assert load_config(Files, None, [f"path={name}", f"file={name}"]) == Files(path=name, file=Path(name))


def test_lists_quotes_and_null_stay_what_they_are_in_yaml():
    files = load_config(Files, None, ["path=[a, 'b c']", "file=null", "number=1e3"])
    assert files == Files(path=("a", "b c"), file=None, number=1000.0)
    assert load_config(Files, None, ["path='2024'"]).path == "2024"
    assert load_config(Files, None, ['path="a # b"']).path == "a # b"
    assert load_config(Files, None, ["path=[2024, 007]"]).path == ("2024", "007")


def test_configuration_cannot_be_changed_after_its_checks():
    config = Train(name="x")
    with pytest.raises(ValidationError, match="frozen"):
        config.max_steps = -1


def test_fields_carry_their_documentation():
    assert Optimizer.model_fields["lr"].description == "Learning rate."


NAMES = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=12)
CONFIGS = st.builds(
    Train,
    name=st.text(string.ascii_letters, min_size=1, max_size=8),
    max_steps=st.integers(1, 10**9),
    optimizer=st.builds(Optimizer, lr=st.floats(1e-12, 1e3)),
    window=st.none() | st.builds(Window, kind=st.sampled_from(["block", "channel"]), ratio=st.floats(0, 1)),
    sources=st.lists(st.builds(Window, ratio=st.floats(0, 1)), max_size=3).map(tuple),
)


@given(config=CONFIGS)
def test_writing_and_reading_gives_the_same_configuration(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(Train, path) == config
    assert parse_config(Train, json.loads(config.model_dump_json())) == config


@given(config=CONFIGS, key=NAMES, section=st.sampled_from([None, "optimizer", "window"]))
def test_no_unknown_key_vanishes(config, key, section):
    values = config.model_dump(mode="json")
    target = values if section is None else (values[section] or {})
    known = {None: Train, "optimizer": Optimizer, "window": Window}[section].model_fields
    target[key] = 1
    if section is not None:
        values[section] = target
    if key not in known:
        name = key if section is None else f"{section}.{key}"
        assert f"unknown key `{name}`" in message_of(values)


KEYS = st.lists(NAMES | st.sampled_from(["name", "optimizer", "betas", "0"]), min_size=1, max_size=3).map(".".join)


@given(
    content=st.text(max_size=40) | st.binary(max_size=40),
    override=st.text(max_size=20) | KEYS.map(lambda key: f"{key}=1"),
)
@example(content="- name", override="0=1")
@example(content="name: x", override="name.deeper=1")
@example(content="name: x", override="optimizer.betas.5=1")
@example(content="? [a]\n: 1", override="")
@example(content="name: ${a", override="=")
def test_whatever_is_typed_gives_a_configuration_or_a_user_error(content, override, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("config"), content)
    try:
        config, message = load_config(Train, path, [override]), ""
    except UserError as error:
        config, message = None, str(error)
    assert isinstance(config, Train) or (message and "\n" not in message)


@given(first=CONFIGS, second=CONFIGS)
def test_fingerprint_tells_configurations_apart(first, second):
    assert (fingerprint(first) == fingerprint(second)) == (first == second)
    assert fingerprint(first, "data") != fingerprint(first)


def test_fingerprint_ignores_the_order_of_keys_and_is_stable():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint(Window()) == fingerprint({"kind": "block", "ratio": 0.2})
    assert fingerprint({"a": 1}) == "2696610e78752a9e"  # folders on disk are named by it: sha256 of '[{"a": 1}]'
