from __future__ import annotations

from typing import Any

import pytest

from refinery.io.sources import BadRecord, InputSpec, RawDocument, Split, plan_splits, read_split


def spec_of(collection: str, **options: Any) -> InputSpec:
    return InputSpec(
        source="py",
        domain=collection,
        role="pool",
        format="python_environment",
        paths=(),
        options={"collection": collection, **options},
    )


def read(spec: InputSpec, splits: list[Split]) -> list[RawDocument]:
    records = [r for split in splits for r in read_split(spec, split)]
    assert not [r for r in records if isinstance(r, BadRecord) and r.reason != "no_text"]
    return [r for r in records if isinstance(r, RawDocument)]


def test_docs_hold_topics_and_docstrings_with_names() -> None:
    spec = spec_of("docs")
    documents = read(spec, plan_splits(spec, 1 << 26))
    by_id = {d.upstream_id: d for d in documents}
    assert "topics:if" in by_id
    assert by_id["stdlib:argparse"].license == "PSF-2.0"
    assert by_id["stdlib:json.dumps"].text.startswith("Serialize")
    assert len(documents) > 2000
    assert sum(len(d.text) for d in documents) > 1_000_000


@pytest.mark.parametrize("collection", ["readme", "licences", "code"])
def test_collections_are_there_and_do_not_depend_on_part_size(collection: str) -> None:
    spec = spec_of(collection, max_bytes=400_000)
    whole = plan_splits(spec, 1 << 30)
    cut = plan_splits(spec, 100_000)
    assert len(whole) == 1
    assert len(cut) > 1
    documents = read(spec, whole)
    assert documents == read(spec, cut)
    assert documents
    assert 0 < sum(len(d.text.encode()) for d in documents) <= 400_000
    assert len({d.upstream_id for d in documents}) == len(documents)


def test_a_larger_cap_keeps_the_smaller_ones_spread() -> None:
    def items(limit: int) -> set[str]:
        return {i for s in plan_splits(spec_of("code", max_bytes=limit), 1 << 20) for i in s.items}

    small, large = items(200_000), items(2_000_000)
    assert 0 < len(small) < len(large)
    assert len({name.rpartition("/")[0] for name in large}) > 5


def test_packages_add_to_the_standard_library() -> None:
    with_packages = plan_splits(spec_of("code", packages=True), 1 << 30)
    assert {i.partition(":")[0] for s in with_packages for i in s.items} > {"stdlib"}


def test_readme_is_the_description_without_the_header() -> None:
    documents = read(spec_of("readme"), plan_splits(spec_of("readme"), 1 << 26))
    pytest_page = [d for d in documents if (d.upstream_id or "").startswith("readme:pytest-")]
    assert pytest_page
    assert "Metadata-Version" not in pytest_page[0].text
    assert pytest_page[0].license == "MIT"
