/* SPDX-License-Identifier: GPL-2.0 */
/*
 * /dev/mixmap: what the device (mixmap.c) and its user (player.c) tell each other.
 *
 * Every call is an ioctl; pages are counted from the start of the device.
 */
#ifndef _MIXMAP_H
#define _MIXMAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define MIXMAP_NR_PAGES 16

enum mixmap_vm { MIXMAP_MIXED, MIXMAP_PFN, MIXMAP_REMAP };
enum mixmap_hooks { MIXMAP_HOOKS_FULL, MIXMAP_HOOKS_NONE, MIXMAP_HOOKS_FAIL };

/* Start afresh: new pages, new bytes, counters at zero. Nothing may be mapped. */
struct mixmap_setup {
	char plan[MIXMAP_NR_PAGES];
	__u32 vm;
	__u32 hooks;
};

/* Insert a page at an address of the caller, as a driver may outside of its fault handler. */
struct mixmap_insert {
	__u64 address;
	__u32 page;
	__u32 letter;
	__s32 said;		/* of vm_insert_page, remap_pfn_range: an errno; else a vm_fault_t */
	__u32 pad;
};

/* Let a page live where a letter takes it from, from now on, and unmap it everywhere. */
struct mixmap_migrate {
	__u32 page;
	__u32 letter;
};

struct mixmap_zap {
	__u32 first;
	__u32 nr;
	__u32 even_cows;
};

struct mixmap_page {
	__u32 page;
	__s32 refcount;
	__s32 mapcount;
};

struct mixmap_counts {
	__u32 faults;
	__u32 page_mkwrite;
	__u32 pfn_mkwrite;
	__u32 opens;
	__u32 closes;
};

enum mixmap_frame {
	MIXMAP_FRAME_OTHER, MIXMAP_FRAME_RAW, MIXMAP_FRAME_PG, MIXMAP_FRAME_ZERO,
	MIXMAP_FRAME_ANON,
};

#define MIXMAP_PTE_PRESENT	0x01
#define MIXMAP_PTE_WRITE	0x02
#define MIXMAP_PTE_DIRTY	0x04
#define MIXMAP_PTE_SPECIAL	0x08
#define MIXMAP_PTE_VALID	0x10	/* pfn_valid: there is a struct page */
#define MIXMAP_PTE_NORMAL	0x20	/* vm_normal_page returns it */

/* The pte at an address of the caller. -ENOENT without vma. */
struct mixmap_pte {
	__u64 address;
	__u32 flags;
	__u32 frame;
	__s32 index;		/* of a raw or own page */
	__s32 refcount;
	__s32 mapcount;
	__u32 pad;
};

#define MIXMAP_SETUP	_IOW('x', 1, struct mixmap_setup)
#define MIXMAP_INSERT	_IOWR('x', 2, struct mixmap_insert)
#define MIXMAP_MIGRATE	_IOW('x', 3, struct mixmap_migrate)
#define MIXMAP_ZAP	_IOW('x', 4, struct mixmap_zap)
#define MIXMAP_PAGE	_IOWR('x', 5, struct mixmap_page)
#define MIXMAP_COUNTS	_IOR('x', 6, struct mixmap_counts)
#define MIXMAP_PTE	_IOWR('x', 7, struct mixmap_pte)

#endif
