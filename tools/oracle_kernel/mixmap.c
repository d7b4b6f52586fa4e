// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/mixmap: a device of 16 pages whose fault handler inserts each page by a letter of its plan.
 *
 *	R  vmf_insert_mixed(raw pfn)		P  vmf_insert_mixed(pfn with struct page)
 *	W  vmf_insert_mixed_mkwrite(raw pfn)	I  vm_insert_page
 *	F  vmf_insert_pfn(raw pfn)		V  hands vmf->page to the core
 *	G  remap_pfn_range of one page		Z  vmf_insert_mixed(zero page)
 *
 * A raw page has no struct page: it lies in memory given by `iomem=xip,FILE` on the command line of
 * user-mode Linux, which pfn_valid() is made to know nothing of. Raw pages hold 'A', 'B', ...; own
 * pages, each with one reference of the device, hold 'a', 'b', ....
 *
 * Built into the kernel, since it asks vm_normal_page(), which no module may call. One user at a
 * time sets it up, and nothing is locked: the kernel here has one cpu and no preemption.
 */
#define pr_fmt(fmt) "mixmap: " fmt

#include <linux/fs.h>
#include <linux/init.h>
#include <linux/memblock.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pfn_t.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <mem_user.h>

#include "mixmap.h"

#define NR_PAGES MIXMAP_NR_PAGES

static struct mixmap_setup setup;
static struct mixmap_counts counts;
static struct page *pages[NR_PAGES];
static struct address_space *mapping;	/* by which the device's ptes are found */
static void *raw_memory;
static unsigned long raw_pfn, nr_raw_pages;

static bool is_raw(char letter)
{
	return strchr("RWFG", letter);
}

static pfn_t device_pfn(unsigned long pfn)
{
	return __pfn_to_pfn_t(pfn, PFN_DEV);
}

/* Insert by a letter. What the function said: an errno for I and G, a vm_fault_t for others. */
static int call_insert(struct vm_area_struct *vma, unsigned long address, u32 i, char letter)
{
	switch (letter) {
	case 'R':
		return vmf_insert_mixed(vma, address, device_pfn(raw_pfn + i));
	case 'W':
		return vmf_insert_mixed_mkwrite(vma, address, device_pfn(raw_pfn + i));
	case 'P':
		return vmf_insert_mixed(vma, address, device_pfn(page_to_pfn(pages[i])));
	case 'Z':
		return vmf_insert_mixed(vma, address, device_pfn(my_zero_pfn(address)));
	case 'F':
		return vmf_insert_pfn(vma, address, raw_pfn + i);
	case 'G':
		return remap_pfn_range(vma, address, raw_pfn + i, PAGE_SIZE, vma->vm_page_prot);
	case 'I':
		return vm_insert_page(vma, address, pages[i]);
	}
	return VM_FAULT_SIGBUS;
}

static vm_fault_t mixmap_fault(struct vm_fault *vmf)
{
	char letter;
	int said;

	counts.faults++;
	if (vmf->pgoff >= NR_PAGES)
		return VM_FAULT_SIGBUS;
	letter = setup.plan[vmf->pgoff];
	if (letter == 'V') {
		vmf->page = pages[vmf->pgoff];
		get_page(vmf->page);
		return 0;
	}
	said = call_insert(vmf->vma, vmf->address, vmf->pgoff, letter);
	if (letter == 'I')
		return said == 0 || said == -EBUSY ? VM_FAULT_NOPAGE : VM_FAULT_SIGBUS;
	if (letter == 'G')
		return said == 0 ? VM_FAULT_NOPAGE : VM_FAULT_SIGBUS;
	return said;
}

static vm_fault_t mixmap_page_mkwrite(struct vm_fault *vmf)
{
	counts.page_mkwrite++;
	if (setup.hooks == MIXMAP_HOOKS_FAIL)
		return VM_FAULT_SIGBUS;
	lock_page(vmf->page);
	return VM_FAULT_LOCKED;
}

static vm_fault_t mixmap_pfn_mkwrite(struct vm_fault *vmf)
{
	counts.pfn_mkwrite++;
	return setup.hooks == MIXMAP_HOOKS_FAIL ? VM_FAULT_SIGBUS : 0;
}

static void mixmap_vm_open(struct vm_area_struct *vma)
{
	counts.opens++;
}

static void mixmap_vm_close(struct vm_area_struct *vma)
{
	counts.closes++;
}

static const struct vm_operations_struct with_hooks = {
	.open		= mixmap_vm_open,
	.close		= mixmap_vm_close,
	.fault		= mixmap_fault,
	.page_mkwrite	= mixmap_page_mkwrite,
	.pfn_mkwrite	= mixmap_pfn_mkwrite,
};

static const struct vm_operations_struct without_hooks = {
	.open		= mixmap_vm_open,
	.close		= mixmap_vm_close,
	.fault		= mixmap_fault,
};

static int mixmap_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = setup.hooks == MIXMAP_HOOKS_NONE ? &without_hooks : &with_hooks;
	switch (setup.vm) {
	case MIXMAP_MIXED:
		vma->vm_flags |= VM_MIXEDMAP;
		return 0;
	case MIXMAP_PFN:
		vma->vm_flags |= VM_PFNMAP;
		return 0;
	}
	return remap_pfn_range(vma, vma->vm_start, raw_pfn + vma->vm_pgoff,
			       vma->vm_end - vma->vm_start, vma->vm_page_prot);
}

/* What an earlier scene leaked (there are ways) stays with it: the pages are new each time. */
static int start_afresh(void)
{
	int i;

	memset(raw_memory, 0, nr_raw_pages << PAGE_SHIFT);
	for (i = 0; i < NR_PAGES; i++) {
		struct page *page = alloc_page(GFP_KERNEL);

		if (!page)
			return -ENOMEM;
		if (pages[i])
			put_page(pages[i]);
		pages[i] = page;
		memset(page_address(page), 'a' + i, PAGE_SIZE);
		memset(raw_memory + i * PAGE_SIZE, 'A' + i, PAGE_SIZE);
	}
	memset(&counts, 0, sizeof(counts));
	return 0;
}

static int insert(struct mixmap_insert *arg)
{
	struct vm_area_struct *vma;
	int error = 0;

	if (arg->page >= NR_PAGES)
		return -EINVAL;
	mmap_write_lock(current->mm);
	vma = vma_lookup(current->mm, arg->address);
	if (vma)
		arg->said = call_insert(vma, arg->address, arg->page, arg->letter);
	else
		error = -ENOENT;
	mmap_write_unlock(current->mm);
	return error;
}

static void *bytes_of(u32 i, char letter)
{
	return is_raw(letter) ? raw_memory + i * PAGE_SIZE : page_address(pages[i]);
}

static void zap(u32 first, u32 nr, bool even_cows)
{
	unmap_mapping_range(mapping, (loff_t)first << PAGE_SHIFT, (loff_t)nr << PAGE_SHIFT,
			    even_cows);
}

static int migrate(const struct mixmap_migrate *arg)
{
	void *from, *to;

	if (arg->page >= NR_PAGES)
		return -EINVAL;
	from = bytes_of(arg->page, setup.plan[arg->page]);
	to = bytes_of(arg->page, arg->letter);
	if (from != to)
		memcpy(to, from, PAGE_SIZE);
	setup.plan[arg->page] = arg->letter;
	zap(arg->page, 1, false);
	return 0;
}

static void describe_page(struct mixmap_pte *arg, struct page *page)
{
	int i;

	arg->flags |= MIXMAP_PTE_VALID;
	arg->refcount = page_count(page);
	arg->mapcount = page_mapcount(page);
	if (PageAnon(page))
		arg->frame = MIXMAP_FRAME_ANON;
	else if (is_zero_pfn(page_to_pfn(page)))
		arg->frame = MIXMAP_FRAME_ZERO;
	for (i = 0; i < NR_PAGES; i++) {
		if (pages[i] == page) {
			arg->frame = MIXMAP_FRAME_PG;
			arg->index = i;
		}
	}
}

static void describe_pte(struct mixmap_pte *arg, struct vm_area_struct *vma, pte_t pte)
{
	unsigned long pfn = pte_pfn(pte);

	arg->flags = MIXMAP_PTE_PRESENT;
	if (pte_write(pte))
		arg->flags |= MIXMAP_PTE_WRITE;
	if (pte_dirty(pte))
		arg->flags |= MIXMAP_PTE_DIRTY;
	if (pte_special(pte))
		arg->flags |= MIXMAP_PTE_SPECIAL;
	if (vm_normal_page(vma, arg->address, pte))
		arg->flags |= MIXMAP_PTE_NORMAL;
	arg->frame = MIXMAP_FRAME_OTHER;
	arg->index = -1;
	if (pfn_valid(pfn)) {
		describe_page(arg, pfn_to_page(pfn));
	} else if (pfn >= raw_pfn && pfn < raw_pfn + nr_raw_pages) {
		arg->frame = MIXMAP_FRAME_RAW;
		arg->index = pfn - raw_pfn;
	}
}

static int look_at_pte(struct mixmap_pte *arg)
{
	struct vm_area_struct *vma;
	spinlock_t *lock;
	pte_t *pte;

	arg->flags = 0;
	mmap_read_lock(current->mm);
	vma = vma_lookup(current->mm, arg->address);
	if (vma && !follow_pte(current->mm, arg->address, &pte, &lock)) {
		describe_pte(arg, vma, *pte);
		pte_unmap_unlock(pte, lock);
	}
	mmap_read_unlock(current->mm);
	return vma ? 0 : -ENOENT;
}

union argument {
	struct mixmap_setup setup;
	struct mixmap_insert insert;
	struct mixmap_migrate migrate;
	struct mixmap_zap zap;
	struct mixmap_page page;
	struct mixmap_counts counts;
	struct mixmap_pte pte;
};

static long call(unsigned int cmd, union argument *arg)
{
	switch (cmd) {
	case MIXMAP_SETUP:
		setup = arg->setup;
		return start_afresh();
	case MIXMAP_INSERT:
		return insert(&arg->insert);
	case MIXMAP_MIGRATE:
		return migrate(&arg->migrate);
	case MIXMAP_ZAP:
		zap(arg->zap.first, arg->zap.nr, arg->zap.even_cows);
		return 0;
	case MIXMAP_PAGE:
		if (arg->page.page >= NR_PAGES)
			return -EINVAL;
		arg->page.refcount = page_count(pages[arg->page.page]);
		arg->page.mapcount = page_mapcount(pages[arg->page.page]);
		return 0;
	case MIXMAP_COUNTS:
		arg->counts = counts;
		return 0;
	case MIXMAP_PTE:
		return look_at_pte(&arg->pte);
	}
	return -ENOTTY;
}

static long mixmap_ioctl(struct file *file, unsigned int cmd, unsigned long user)
{
	size_t size = _IOC_SIZE(cmd);
	union argument arg;
	long error;

	if (size > sizeof(arg))
		return -ENOTTY;
	if (_IOC_DIR(cmd) & _IOC_WRITE && copy_from_user(&arg, (void __user *)user, size))
		return -EFAULT;
	error = call(cmd, &arg);
	if (!error && _IOC_DIR(cmd) & _IOC_READ && copy_to_user((void __user *)user, &arg, size))
		return -EFAULT;
	return error;
}

static int mixmap_open(struct inode *inode, struct file *file)
{
	mapping = file->f_mapping;
	return 0;
}

static const struct file_operations mixmap_fops = {
	.open		= mixmap_open,
	.mmap		= mixmap_mmap,
	.unlocked_ioctl	= mixmap_ioctl,
};

static struct miscdevice mixmap_device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "mixmap",
	.fops	= &mixmap_fops,
};

static int __init mixmap_init(void)
{
	unsigned long size;
	unsigned long address = find_iomem("xip", &size);

	if (!address) {
		pr_err("no memory without struct pages: iomem=xip,FILE is missing\n");
		return -ENODEV;
	}
	raw_memory = (void *)address;
	raw_pfn = __pa(address) >> PAGE_SHIFT;
	nr_raw_pages = (size >> PAGE_SHIFT) - 1;	/* parse_iomem() adds a page too many */
	/* The window lies behind all RAM, and user-mode Linux counts it in. */
	max_mapnr = min(max_mapnr, raw_pfn);
	if (nr_raw_pages < NR_PAGES || pfn_valid(raw_pfn)) {
		pr_err("raw pages: %lu from pfn %#lx will not do\n", nr_raw_pages, raw_pfn);
		return -ENODEV;
	}
	return misc_register(&mixmap_device);
}
late_initcall(mixmap_init);
