"""Reading methods, options and layers from text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.options import all_options, layers_text, make_method, parse_layers, parse_method
from tokenmerge_bench.reducers import Layers
from tokenmerge_bench.registry import list_methods

OPTIONS: dict[str, dict[str, Sequence[object]]] = {
    "dhtm": {
        "connectivity": (8, 4),
        "similarity": ("cosine", "euclidean", "manhattan", "kl", "kl_forward"),
        "averaging": ("size", "plain"),
        "feature": ("mid", "attn_out", "keys"),
        "position": ("mid", "post"),
        "prop_attn": (True, False),
    },
    "random": {
        "pair": ("edge", "token_neighbor", "any"),
        "connectivity": (8, 4),
        "averaging": ("size", "plain"),
        "position": ("mid", "pre", "post"),
        "prop_attn": (True, False),
    },
    "tome": {"inflection": (0.0, -1.0, 0.25), "prop_attn": (True, False)},
    "lotm": {
        "window": ("sliding", "fixed"),
        "averaging": ("size", "plain"),
        "prop_attn": (True, False),
        "wrap": (False, True),
    },
    "dpc_knn": {"k": (5, 1, 20), "learned_weights": (False, True), "noise": (0.0, 1e-6, 0.5)},
    "k_medoids": {"variant": ("weighted", "tokenreduction"), "iters": (3, 0), "weights": ("all", "cls")},
}
LAYERS: st.SearchStrategy[Layers | None] = st.one_of(
    st.none(), st.just("all"), st.sets(st.integers(0, 11), min_size=1).map(lambda found: tuple(sorted(found)))
)


def test_the_six_training_free_methods_are_there() -> None:
    assert set(OPTIONS) <= set(list_methods())


def test_a_bare_name_has_the_defaults() -> None:
    spec = parse_method("dhtm")
    assert (spec.name, spec.changed, spec.label, spec.layers) == ("dhtm", "", "dhtm", None)
    assert spec.options == spec.type.options_type()


def test_options_are_read_with_their_types() -> None:
    spec = parse_method(" dhtm:connectivity=4:prop_attn=off:averaging = plain")
    assert (spec.options.connectivity, spec.options.prop_attn, spec.options.averaging) == (4, False, "plain")
    assert isinstance(spec.options.connectivity, int)
    assert parse_method("dpc_knn:noise=1").options.noise == 1.0
    assert parse_method("tome:inflection=-0.5").options.inflection == -0.5


def test_a_default_that_is_spelt_out_is_not_a_change() -> None:
    assert parse_method("dhtm:connectivity=8:prop_attn=on") == parse_method("dhtm")


@pytest.mark.parametrize("word", ["true", "on", "yes", "True", "ON"])
def test_words_for_true(word: str) -> None:
    assert parse_method(f"lotm:wrap={word}").options.wrap is True


@pytest.mark.parametrize("word", ["false", "off", "no", "False", "OFF"])
def test_words_for_false(word: str) -> None:
    assert parse_method(f"dhtm:prop_attn={word}").options.prop_attn is False


@given(st.data())
def test_labels_ask_for_the_same_again(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(OPTIONS)))
    chosen = {key: data.draw(st.sampled_from(list(values)), label=key) for key, values in OPTIONS[name].items()}
    if name == "dhtm" and chosen["feature"] != "mid":
        chosen["position"] = "mid"
    spec = make_method(name, chosen, data.draw(LAYERS))
    assert parse_method(spec.label) == spec
    assert {key: getattr(spec.options, key) for key in chosen} == chosen


def test_labels_show_what_was_changed_and_nothing_else() -> None:
    spec = parse_method("dhtm:prop_attn=off:layers=0/5:connectivity=4")
    assert spec.label == "dhtm:connectivity=4:prop_attn=false:layers=0/5"


def test_layers_of_the_text_win_over_the_flag() -> None:
    assert parse_method("dhtm", (1, 2)).layers == (1, 2)
    assert parse_method("dhtm:layers=all", (1, 2)).layers == "all"
    assert parse_method("dhtm:layers=7", (1, 2)).layers == (7,)


def test_the_default_layers_spelt_out_are_the_same_experiment() -> None:
    assert all_options(parse_method("dhtm")) == all_options(parse_method("dhtm:layers=3/6/10"))
    assert all_options(parse_method("dhtm")) != all_options(parse_method("dhtm:layers=3/6/9"))


@given(st.sampled_from(["dhtm", "random", "lotm", "dpc_knn", "k_medoids"]), LAYERS)
def test_blocks_are_what_was_asked_for(name: str, layers: tuple[int, ...] | str | None) -> None:
    spec = make_method(name, {} if layers is None else {"layers": layers if layers == "all" else layers_text(layers)})  # type: ignore[arg-type]
    if layers == "all":
        assert spec.blocks(12) == tuple(range(12))
    else:
        assert spec.blocks(12) == (spec.build().layers if layers is None else layers)


def test_after_the_last_block_there_is_nothing_to_reduce() -> None:
    assert parse_method("dhtm:position=post:layers=all").blocks(12) == tuple(range(11))
    with pytest.raises(InputError, match="nothing follows the last one"):
        parse_method("dhtm:position=post:layers=11").blocks(12)


def test_a_block_that_the_model_lacks() -> None:
    with pytest.raises(
        InputError, match=r"reduces at block 10 but the model has blocks 0 to 7; choose others, such as .*:layers=1/2"
    ):
        parse_method("dhtm").blocks(8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dhmt", r"unknown method 'dhmt' \(did you mean 'dhtm'\?\).*--plugin"),
        ("", "unknown method ''"),
        ("DHTM", "unknown method 'DHTM'"),
        (
            "dhtm:conectivity=4",
            r"no option 'conectivity' \(did you mean 'connectivity'\?\); it has connectivity, .*layers",
        ),
        ("dhtm:layer=all", r"did you mean 'layers'\?"),
        ("dhtm:connectivity", "'connectivity' of method 'dhtm' has no value; write dhtm:connectivity=VALUE"),
        ("dhtm:", "has no value"),
        ("dhtm:connectivity=5", "connectivity=5 is not allowed .*8, 4 or 'any'"),
        ("dhtm:connectivity=four", "connectivity=four is not allowed"),
        ("dhtm:averaging=mean", "averaging=mean is not allowed"),
        ("dhtm:prop_attn=maybe", "prop_attn=maybe is not allowed"),
        ("dhtm:connectivity=4:connectivity=8", "'connectivity' of method 'dhtm' is given twice"),
        ("dhtm:layers=1:layers=2", "'layers' of method 'dhtm' is given twice"),
        ("dhtm:position=pre:feature=attn_out", "feature"),
        ("tome:staged=on:inflection=1", "staged and inflection exclude each other; leave one out"),
        ("tome:inflection=1.5", r"inflection=1.5 is out of range; give a number from -1 to 1"),
        ("tome:inflection=nan", "out of range"),
        ("dpc_knn:k=0", "k=0 neighbours is too few; give 1 or more"),
        ("dpc_knn:k=2.5", "k=2.5 is not allowed"),
        ("dpc_knn:noise=-1", "noise=-1 is no width"),
        ("k_medoids:iters=-1", "iters=-1 is negative"),
    ],
)
def test_wrong_methods_and_options_are_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "a", "3/", "-1", "3,6", "3/3", "6/3", "3.5", "all/3", "²", "3//6"])
def test_wrong_layers_name_themselves(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_layers(text)
    assert f"layers '{text}'" in str(caught.value)
    assert "3/6/10" in str(caught.value)


@given(LAYERS.filter(lambda layers: layers is not None))
def test_layers_round_trip(layers: tuple[int, ...]) -> None:
    assert parse_layers(layers_text(layers)) == layers


def test_fingerprints_tell_all_options_apart() -> None:
    texts = [
        f"{name}:{key}={value}"
        for name, options in OPTIONS.items()
        for key, values in options.items()
        for value in values[1:]
    ]
    marks = [(text.partition(":")[0], all_options(parse_method(text))) for text in texts if "feature=keys" not in text]
    assert all(a != b for a, b in itertools.combinations(marks, 2))
