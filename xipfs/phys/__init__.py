"""Physical memory: RAM frames and the mmap-backed NVRAM image as one address space of pfns.

nvram     NvramDevice: the image file; every load and store of it goes through here
physmem   PhysMem: pfn -> bytes, for both kinds of memory
"""
