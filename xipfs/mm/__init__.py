"""The simulated memory manager around VM_MIXEDMAP: Linux's words, Linux's rules.

    arch           what an architecture of a kernel version has: the pte special bit, fast GUP, ...
    pfn_valid      the memory models
    vmstat         counters under their /proc/vmstat names
    lock           atomic steps, and the locks that sleep
    mem_map        struct pages, for RAM frames only; alloc_page, get_page, put_page
    pgtable        pte words and leaves of 512 of them, allocated when touched
    address_space  the file side: i_pages, i_mmap, and the upward call get_xip_mem
    machine        what all mms share: physical memory, mem_map, counters, the zero pages
    vm_fault       what passes between a fault and the filesystem
    vma            Vma and Mm: mapped ranges of one address space
    mixedmap       vm_insert_mixed and its kin, vm_normal_page
    remap          remap_pfn_range: VM_PFNMAP
    tlb            mmu_gather: what CPUs may still reach is freed after they were told
    rmap           unmap_mapping_range: a page without struct page has no rmap but its offset
    filemap_xip    xip_file_fault, xip_file_read, xip_file_write
    fault          handle_mm_fault: mapping, private copies, mkwrite
    access         accesses that take faults: of the mount, of programs
    gup            get_user_pages, slow and fast; gup_users: who calls it
    mmap           do_mmap, do_munmap; and fork, mprotect, mremap, mlock, madvise, msync, truncate
    migrate        promote and demote: unmap, copy, switch, let it fault
    proc           smaps, pagemap, kpagecount, mincore
    check          everything that must hold, counted anew

Nothing here knows a filesystem: that hands in an AddressSpaceOperations.
"""
