"""The simulated memory manager around VM_MIXEDMAP: Linux's words, Linux's rules.

    arch           what an architecture of a kernel version has: the pte special bit
    vmstat         counters under their /proc/vmstat names
    mem_map        struct pages, for RAM frames only; alloc_page, get_page, put_page
    pgtable        pte words and leaves of 512 of them, allocated when touched
    address_space  the file side: i_pages, i_mmap, and the upward call get_xip_mem
    machine        what all mms share: physical memory, mem_map, counters, the sparse page
    vma            Vma and Mm: mapped ranges of one address space
    mixedmap       vm_insert_mixed, vm_insert_page, vm_normal_page
    rmap           unmap_mapping_range: a page without struct page has no rmap but its offset
    filemap_xip    xip_file_fault
    fault          handle_mm_fault, and the access that takes it
    migrate        promote and demote: unmap, copy, switch, let it fault

Nothing here knows a filesystem: that hands in an AddressSpaceOperations.
"""
