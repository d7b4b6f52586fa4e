"""Page tables: words, leaves, places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_NONE,
    PTE_PRESENT,
    PTE_SPECIAL,
    PTRS_PER_PTE,
    Leaf,
    PageTable,
    mk_pte,
    pte_index,
    pte_pfn,
    pte_present,
    pte_special,
)
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, Pfn, Vaddr


@given(pfn=st.integers(0, (1 << 40) - 1) | st.just(NVRAM_PFN_START), special=st.booleans())
def test_word_gives_back_what_went_into_it_and_fits_a_leaf(pfn: int, special: bool):
    pte = mk_pte(Pfn(pfn), PTE_PRESENT | (PTE_SPECIAL if special else 0))
    assert (pte_pfn(pte), pte_present(pte), pte_special(pte)) == (pfn, True, special)
    leaf = Leaf()
    leaf.words[0] = pte
    assert int(leaf.ptes[0]) == leaf.words[0] == pte


def test_none_is_not_present_and_not_special():
    assert not pte_present(PTE_NONE)
    assert not pte_special(PTE_NONE)


def test_word_and_array_are_the_same_memory():
    leaf = Leaf()
    leaf.ptes[7] = 5
    leaf.accessed[8] = 1
    leaf.heat[9] = 3
    assert (leaf.words[7], leaf.accessed_bytes[8], leaf.heat_bytes[9]) == (5, 1, 3)
    leaf.words[7] = 0
    leaf.heat_bytes[9] = 255
    assert (int(leaf.ptes[7]), int(leaf.heat[9])) == (0, 255)
    with pytest.raises(ValueError):
        leaf.heat_bytes[9] = 256


def test_leaf_is_made_when_touched_and_once():
    table = PageTable()
    address = Vaddr(3 << PMD_SHIFT)
    assert table.find_pte(address) == PTE_NONE
    assert not table.leaves, "looking makes nothing"
    leaf = table.pte_alloc(address)
    assert table.pte_alloc(Vaddr(address + (511 << PAGE_SHIFT))) is leaf
    assert table.pte_alloc(Vaddr(address + (512 << PAGE_SHIFT))) is not leaf
    assert sorted(table.leaves) == [3, 4]
    leaf.words[511] = mk_pte(Pfn(9), PTE_PRESENT)
    assert pte_pfn(table.find_pte(Vaddr(address + (511 << PAGE_SHIFT)))) == 9


def test_index_is_the_place_in_the_leaf():
    addresses = np.arange(3 * PTRS_PER_PTE) << PAGE_SHIFT
    assert [pte_index(address) for address in addresses.tolist()] == list(range(512)) * 3
