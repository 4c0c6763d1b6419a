import pytest

from championship_sr.extract.config import (
    FULL_SIZE,
    ExpertConfig,
    ExtractConfig,
    TapConfig,
    entry_names,
    expert_configs,
    load_expert_config,
)
from championship_sr.store.config import build, to_plain
from championship_sr.store.errors import ConfigError

DATA = {"hr": ["photos"]}


def entry(**values) -> dict:
    return {"name": "hat", "weights": "hat.pth", "tap": "conv_after_body"} | values


def test_every_entry_of_the_package_is_valid_and_named_as_its_file():
    assert {*FULL_SIZE, "hat-xs", "drct-xs", "grl-xs", "edsr-xs"} <= set(entry_names())
    for name in entry_names():
        assert load_expert_config(name).name == name


def test_an_entry_survives_being_written_as_yaml():
    config = load_expert_config(entry(taps={"features": {"path": "body", "side": "input"}}, tap=None))
    assert build(ExpertConfig, to_plain(config), "again") == config


def test_tap_is_short_for_a_tap_called_features():
    assert load_expert_config(entry()).points == {"features": TapConfig(path="conv_after_body")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tap": None}, "give either tap or taps"),
        ({"taps": {"features": "body"}}, "give either tap or taps"),
        ({"tap": None, "taps": {"deep": "body"}}, "one must be called features, found deep"),
        ({"tap": None, "taps": {"features": "body", "sr": "x"}}, "sr is a name that the store uses itself"),
        ({"name": "a/b"}, "only letters, digits"),
        ({"architecture": "nafnet.build"}, "package.module:factory"),
        ({"sha256": "xyz"}, "8 to 64 hexadecimal digits"),
        ({"wieghts": "x"}, "wieghts: no such key"),
    ],
)
def test_a_faulty_entry_is_refused_with_its_reason(values, message):
    with pytest.raises(ConfigError, match=message):
        load_expert_config(entry(**values))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"expert hat-m: no such entry \(has: drct-l,.*hat-l"):
        load_expert_config("hat-m")


def test_experts_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="expert hat: named twice"):
        expert_configs((entry(), entry(tap="body")))


def test_choosing_an_expert_that_is_not_configured_says_which_are():
    with pytest.raises(ConfigError, match=r"expert span: not in this configuration \(has: hat\)"):
        expert_configs((entry(),), ("span",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {}}, "give roots, hr or lr"),
        ({"data": {"hr": ["a", "b"], "lr": ["c"]}}, "lr must name one folder for each of hr, found 1 for 2"),
        ({"tile_px": 0}, "tile_px must be at least 1"),
        ({"halo_px": 256}, "less than half of tile_px"),
        ({"variants": ["mirror"]}, "variants must contain identity"),
        ({"variants": ["identity", "rot45"]}, "rot45"),
        ({"precision": "fp8"}, "extract.precision"),
    ],
)
def test_impossible_values_are_refused_with_their_reason(values, message):
    with pytest.raises(ConfigError, match=message):
        build(ExtractConfig, {"store": "s", "data": DATA} | values, "c.yaml", "extract")


def test_neither_order_nor_repetition_of_variants_makes_another_store():
    values = {"store": "s", "data": DATA, "variants": ["rot90", "identity", "mirror", "rot90"]}
    assert build(ExtractConfig, values, "c.yaml", "extract").variants == ("identity", "mirror", "rot90")
