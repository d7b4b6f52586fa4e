"""Physical memory: RAM frames and the mmap-backed NVRAM image as one address space of pfns.

nvram     NvramDevice: the image file; every load and store of it goes through here
physmem   PhysMem: pfn -> bytes, for both kinds of memory
media     what kinds of memory cost, as published
cost      what accesses and migrations would take on two of them
wear      how often each block of NVRAM was written
"""
