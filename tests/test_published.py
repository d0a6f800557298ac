"""The published numbers: what is there, in which form, and that it says where it is from."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import timm

from tokenmerge_bench import published
from tokenmerge_bench.registry import list_methods

LOADERS = (published.table1, published.table2, published.quoted, published.claims)


@pytest.mark.parametrize("load", LOADERS)
def test_everything_is_labelled_reported_and_of_models_that_timm_knows(load: Callable[[], pd.DataFrame]) -> None:
    table = load()
    assert len(table)
    assert set(table["source"]) == {"reported"}
    assert all(timm.is_model(model) for model in set(table["model"]) - {""})


def test_table_1_is_seven_k_for_three_models() -> None:
    table = published.table1()
    assert list(table.columns) == ["model", "k", "top1", "gflops", "source"]
    assert table.groupby("model")["k"].apply(list).map(tuple).unique().tolist() == [(0, 10, 20, 30, 40, 48, 56)]
    assert table.groupby("model", sort=False)[["top1", "gflops"]].sum().round(2).to_numpy().tolist() == [
        [501.34, 6.90],
        [554.61, 25.17],
        [568.85, 102.10],
    ]


def test_table_2_is_nine_rows_for_three_models_of_which_six_were_trained() -> None:
    table = published.table2()
    assert list(table.columns) == ["model", "method", "trained", "top1", "gflops", "source"]
    assert table.groupby("model").size().tolist() == [9, 9, 9]
    assert table.groupby("model")["trained"].apply(lambda column: (column == "yes").sum()).tolist() == [6, 6, 6]
    assert not table.duplicated(["model", "method", "trained"]).any()


def test_the_nine_methods() -> None:
    assert {*published.table2()["method"], *published.quoted()["method"]} == set(list_methods())


def test_every_relation_of_a_statement_is_documented() -> None:
    used = set(published.claims()["relation"]) - {""}
    assert {relation for relation in used if f"`{relation}`" not in str(published.claims.__doc__)} == set()


def test_a_statement_is_either_a_number_or_a_sentence() -> None:
    claims = published.claims()
    assert claims["id"].is_unique
    assert (claims["where"] != "").all()
    is_text = claims["kind"] == "text"
    assert (claims.loc[is_text, ["statement", "check"]] != "").all(axis=None)
    assert (claims.loc[~is_text, ["statement", "check"]] == "").all(axis=None)
    assert (claims.loc[~is_text, "relation"] != "").all()
