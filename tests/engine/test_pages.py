import pytest

from loadmaster.engine.pages import PagePool, page_hash


def test_a_request_is_given_adjacent_pages_and_others_start_far_away() -> None:
    pool = PagePool(16, 4)
    first = pool.allocate(2)
    assert first == [0, 1]
    second = pool.allocate(1)
    assert second == [9]  # the middle of 2 to 15
    assert pool.allocate(2, after=1) == [2, 3]
    assert pool.allocate(1, after=9) == [10]


def test_pages_are_all_given_out_before_none_are_left() -> None:
    pool = PagePool(5, 4)
    pages = pool.allocate(5)
    assert pages is not None
    assert sorted(pages) == [0, 1, 2, 3, 4]
    assert pool.allocate(1) is None
    pool.free(pages)
    assert (pool.num_free, pool.num_used) == (5, 0)


def test_a_published_page_is_found_until_its_place_is_needed() -> None:
    pool = PagePool(2, 4)
    pages = pool.allocate(2)
    assert pages is not None
    hashes = [page_hash(b"", [1, 2, 3, 4])]
    hashes.append(page_hash(hashes[0], [5, 6, 7, 8]))
    for page, hash_ in zip(pages, hashes, strict=True):
        pool.publish(page, hash_)
    pool.free(pages)
    assert [pool.find(h) for h in hashes] == pages
    pool.use([pages[0]])
    assert pool.num_used == 1
    assert pool.allocate(1) == [pages[1]]  # the other one is in use
    assert pool.find(hashes[1]) is None
    assert pool.find(hashes[0]) == pages[0]


def test_the_end_of_a_prefix_is_given_up_before_its_beginning() -> None:
    pool = PagePool(3, 1)
    pages = pool.allocate(3)
    assert pages is not None
    previous = b""
    for page in pages:
        previous = page_hash(previous, [page])
        pool.publish(page, previous)
    pool.free(pages)
    assert pool.allocate(1) == [pages[2]]


def test_a_page_is_free_when_its_last_user_is_gone() -> None:
    pool = PagePool(2, 1)
    pages = pool.allocate(1)
    assert pages is not None
    pool.use(pages)
    pool.free(pages)
    assert pool.num_used == 1
    pool.free(pages)
    assert pool.num_used == 0
    with pytest.raises(KeyError):
        pool.free(pages)


def test_hashes_depend_on_all_pages_before() -> None:
    assert page_hash(b"", [1]) != page_hash(page_hash(b"", [0]), [1])
