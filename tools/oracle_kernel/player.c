// SPDX-License-Identifier: GPL-2.0
/*
 * The player: /init of the oracle kernel. Plays scenes (docs: xipfs/oracle/player.py), one
 * operation a line, from one line of the console to one line of answer.
 *
 *	device plan=RRP vm=mixed hooks=full	-> ok		a scene begins
 *	0 map A rw private 4			-> ok
 *	0 write A 0 Q				-> ok
 *	end					-> ok		all its processes are gone
 *
 *	  console                 pipes, a line each
 *	----------> director ------------------------> process 0, 1, ...: an actor each
 *	<----------  (pid 1) <------------------------
 *
 * The director answers for the device and starts, traces and ends actors; an actor does to its own
 * memory what its lines say. A forked actor has the director for a parent, too (CLONE_PARENT), so
 * that its end can be waited for: a process that was waited for has no memory any more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "mixmap.h"

#define PAGE 4096ul
#define MAX_PROCESSES 8
#define MAX_HELD 64
#define MAX_WORDS 12
#define LINE 512

/* Areas lie one below the other, far from all that the kernel places by itself. */
#define TOP_ADDRESS 0x60000000ul
#define NR_RESERVED 64

enum { SMALL = 64, WORD = 8 };	/* bytes that users of pages read or write */

static int device, ram_disk, uring;
static int orders[MAX_PROCESSES][2], answers[2];	/* pipes from and to the director */

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "player: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, ": %s\n", strerror(errno));
	va_end(args);
	exit(1);
}

static int check(int result, const char *what)
{
	if (result < 0)
		die("%s", what);
	return result;
}

/* Lines in pipes have one size, so that a read gets one. */
static void send_line(int fd, const char *line)
{
	char buffer[LINE] = "";

	snprintf(buffer, sizeof(buffer), "%s", line);
	if (write(fd, buffer, LINE) != LINE)
		die("write");
}

static void receive_line(int fd, char *line)
{
	if (read(fd, line, LINE) != LINE)
		die("read");
}

static int split(char *line, char **words)
{
	char *rest;
	int n = 0;

	for (char *word = strtok_r(line, " \n", &rest); word && n < MAX_WORDS;
	     word = strtok_r(NULL, " \n", &rest))
		words[n++] = word;
	for (int i = n; i < MAX_WORDS; i++)
		words[i] = "";
	return n;
}

/* ---------------------------------------------------------------- what an actor answers */

static char answer[LINE];

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	size_t used = strlen(answer);
	va_list args;

	va_start(args, format);
	vsnprintf(answer + used, sizeof(answer) - used, format, args);
	va_end(args);
}

static void say_errno(int error)
{
	say("%s", strerrorname_np(error) ?: "E?");
}

static void say_number(long result)
{
	if (result < 0)
		say_errno(errno);
	else
		say("%ld", result);
}

static void say_ok(long result)
{
	if (result < 0)
		say_errno(errno);
	else
		say("ok");
}

/* ---------------------------------------------------------------- memory */

static unsigned long areas[26];
static unsigned long next_address = TOP_ADDRESS;

static char *address_of(char **words)
{
	return (char *)areas[(words[0][0] - 'A') % 26] + atol(words[1]) * PAGE;
}

/* A place for an area: something lies behind it that never goes away. */
static char *reserve(unsigned long nr)
{
	unsigned long nr_reserved = (nr > NR_RESERVED ? nr : NR_RESERVED) + 1;
	void *address;

	next_address -= nr_reserved * PAGE;
	address = mmap((void *)next_address, nr_reserved * PAGE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (address != (void *)next_address)
		die("reserving %lu pages", nr_reserved);
	return address;
}

/*
 * Where fork left an area out (MADV_DONTFORK), user-mode Linux forgets to unmap it from the host
 * process that runs the child, so that reads go on to work. Mapping and unmapping reminds it.
 */
static bool has_dontfork;

static void unmap_what_was_left_out(void)
{
	enum { MAX_PAGES = 16 };	/* that areas have */

	for (int i = 0; i < 26 * MAX_PAGES; i++) {
		char *page = (char *)areas[i / MAX_PAGES] + i % MAX_PAGES * PAGE;

		if (areas[i / MAX_PAGES] &&
		    mmap(page, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE |
			 MAP_FIXED_NOREPLACE, -1, 0) == page)
			munmap(page, PAGE);
	}
}

static sigjmp_buf caught;
static siginfo_t signal_info;

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	signal_info = *info;
	siglongjmp(caught, 1);
}

static void say_signal(void)
{
	say("SIG%s/%d", sigabbrev_np(signal_info.si_signo), signal_info.si_code);
}

/* The byte at an address; the whole page is read if a buffer is given. False for a signal. */
static bool load(const volatile char *address, char *buffer, size_t size)
{
	if (sigsetjmp(caught, 1))
		return false;
	for (size_t i = 0; i < size; i++)
		buffer[i] = address[i];
	return true;
}

static void read_byte(const char *address)
{
	char byte;

	if (!load(address, &byte, 1))
		say_signal();
	else if (byte > 32 && byte < 127)
		say("'%c'", byte);
	else
		say("0x%02x", (unsigned char)byte);
}

/* What a user of pages writes: what is there already, or As where that cannot be read. */
static char *content_of(const char *address, size_t size)
{
	static char content[PAGE] __attribute__((aligned(4096)));

	if (!load(address, content, size))
		memset(content, 'A', size);
	return content;
}

/* ---------------------------------------------------------------- words to numbers */

struct word {
	const char *name;
	int value;
};

static const struct word prots[] = {
	{ "none", PROT_NONE }, { "r", PROT_READ }, { "rw", PROT_READ | PROT_WRITE },
	{ "rx", PROT_READ | PROT_EXEC }, {}
};

static const struct word advices[] = {
	{ "NORMAL", MADV_NORMAL }, { "RANDOM", MADV_RANDOM }, { "SEQUENTIAL", MADV_SEQUENTIAL },
	{ "WILLNEED", MADV_WILLNEED }, { "DONTNEED", MADV_DONTNEED }, { "FREE", MADV_FREE },
	{ "REMOVE", MADV_REMOVE }, { "DONTFORK", MADV_DONTFORK }, { "DOFORK", MADV_DOFORK },
	{ "MERGEABLE", MADV_MERGEABLE }, { "DONTDUMP", MADV_DONTDUMP },
	{ "DODUMP", MADV_DODUMP }, { "WIPEONFORK", MADV_WIPEONFORK },
	{ "KEEPONFORK", MADV_KEEPONFORK }, { "COLD", MADV_COLD }, { "PAGEOUT", MADV_PAGEOUT },
	{ "POPULATE_READ", MADV_POPULATE_READ }, { "POPULATE_WRITE", MADV_POPULATE_WRITE }, {}
};

static const struct word vms[] = {
	{ "vm=mixed", MIXMAP_MIXED }, { "vm=pfn", MIXMAP_PFN }, { "vm=remap", MIXMAP_REMAP }, {}
};

static const struct word hooks[] = {
	{ "hooks=full", MIXMAP_HOOKS_FULL }, { "hooks=none", MIXMAP_HOOKS_NONE },
	{ "hooks=fail", MIXMAP_HOOKS_FAIL }, {}
};

static int value_of(const struct word *words, const char *name)
{
	for (; words->name; words++)
		if (!strcmp(words->name, name))
			return words->value;
	die("unknown word %s", name);
}

/* ---------------------------------------------------------------- operations on pages */

static void play_read(char *address, char **rest)
{
	(void)rest;
	read_byte(address);
}

static void play_tail(char *address, char **rest)
{
	(void)rest;
	read_byte(address + 100);
}

static void play_write(char *address, char **rest)
{
	if (sigsetjmp(caught, 1)) {
		say_signal();
		return;
	}
	*(volatile char *)address = rest[0][0];
	say("ok");
}

static void play_munmap(char *address, char **rest)
{
	say_ok(munmap(address, atol(rest[0]) * PAGE));
}

static void play_mprotect(char *address, char **rest)
{
	say_ok(mprotect(address, atol(rest[0]) * PAGE, value_of(prots, rest[1])));
}

static void play_mlock(char *address, char **rest)
{
	say_ok(mlock(address, atol(rest[0]) * PAGE));
}

static void play_munlock(char *address, char **rest)
{
	say_ok(munlock(address, atol(rest[0]) * PAGE));
}

static void play_madvise(char *address, char **rest)
{
	int advice = value_of(advices, rest[1]);

	has_dontfork |= advice == MADV_DONTFORK;
	say_ok(madvise(address, atol(rest[0]) * PAGE, advice));
}

static void play_msync(char *address, char **rest)
{
	say_ok(msync(address, atol(rest[0]) * PAGE, MS_SYNC));
}

static void play_mincore(char *address, char **rest)
{
	unsigned char present[LINE];
	long nr = atol(rest[0]);

	if (mincore(address, nr * PAGE, present) < 0)
		say_errno(errno);
	else
		for (long i = 0; i < nr; i++)
			say("%d", present[i] & 1);
}

static void play_insert(char *address, char **rest)
{
	struct mixmap_insert arg = {
		.address = (uintptr_t)address, .page = atoi(rest[0]), .letter = rest[1][0],
	};

	if (ioctl(device, MIXMAP_INSERT, &arg) < 0)
		say_errno(errno);
	else if (strchr("IG", arg.letter))
		arg.said ? say_errno(-arg.said) : say("0");
	else
		say(arg.said == 0x100 ? "NOPAGE" : arg.said == 2 ? "SIGBUS" : "?%#x", arg.said);
}

/* Where the new area goes is ours to say, but for `grow`: there it is the kernel's. */
static void play_mremap(char *address, char **rest)
{
	unsigned long old = atol(rest[0]), new = atol(rest[1]);
	const char *how = rest[2];
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	void *place = NULL, *found;

	if (!strcmp(how, "shrink") || !strcmp(how, "grow"))
		flags = MREMAP_MAYMOVE;
	else
		place = reserve(new);
	if (!strcmp(how, "dontunmap"))
		flags |= MREMAP_DONTUNMAP;
	found = mremap(address, old * PAGE, new * PAGE, flags, place);
	if (found == MAP_FAILED)
		say_errno(errno);
	else
		say("ok");
	if (found != MAP_FAILED && rest[3][0])
		areas[rest[3][0] - 'A'] = (uintptr_t)found;
}

/* ---------------------------------------------------------------- what can be seen */

static uint64_t pagemap_entry(const char *address)
{
	uint64_t entry = 0;
	int fd = check(open("/proc/self/pagemap", O_RDONLY), "pagemap");

	if (pread(fd, &entry, sizeof(entry), (uintptr_t)address / PAGE * sizeof(entry)) < 0)
		die("pagemap");
	close(fd);
	return entry;
}

static void play_state(char *address, char **rest)
{
	static const char *const frames[] = { "page", "raw", "pg", "zero", "anon" };
	uint64_t entry = pagemap_entry(address);
	struct mixmap_pte pte = { .address = (uintptr_t)address };

	(void)rest;
	say("pm=%s%s%s", entry >> 63 & 1 ? "present" : "none", entry >> 61 & 1 ? ",file" : "",
	    entry >> 56 & 1 ? ",excl" : "");
	if (ioctl(device, MIXMAP_PTE, &pte) < 0) {
		say(" pte=ERR%d", errno);
		return;
	}
	if (!(pte.flags & MIXMAP_PTE_PRESENT)) {
		say(" pte=none");
		return;
	}
	say(" pte=%s%s%s", pte.flags & MIXMAP_PTE_WRITE ? "W" : "r",
	    pte.flags & MIXMAP_PTE_DIRTY ? "D" : "",
	    pte.flags & MIXMAP_PTE_SPECIAL ? "|SPECIAL" : "");
	say(" cls=%s", frames[pte.frame]);
	if (pte.index >= 0)
		say("+%d", pte.index);
	say(" valid=%d vm_normal_page=%s", !!(pte.flags & MIXMAP_PTE_VALID),
	    pte.flags & MIXMAP_PTE_NORMAL ? "page" : "NULL");
	/* References of an anonymous page depend on what the LRU has in its batches. */
	if (pte.frame == MIXMAP_FRAME_ANON)
		say(" mapc=%d PageAnon", pte.mapcount);
	else if (pte.flags & MIXMAP_PTE_VALID)
		say(" ref=%d mapc=%d", pte.refcount, pte.mapcount);
}

static bool is_shown(const char *key)
{
	static const char *const keys[] = {
		"Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty",
		"Anonymous", "Locked",
	};

	for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++)
		if (!strcmp(keys[i], key))
			return true;
	return false;
}

static void play_smaps(char *address, char **rest)
{
	char line[LINE], key[40], perm[8], flags[LINE] = "";
	FILE *smaps = fopen("/proc/self/smaps", "r");
	unsigned long start, end, kb;
	bool inside = false;

	(void)rest;
	if (!smaps)
		die("smaps");
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perm) == 3) {
			inside = (uintptr_t)address >= start && (uintptr_t)address < end;
			if (inside)
				say("perm=%s size=%lu", perm, (end - start) / 1024);
		} else if (inside && !strncmp(line, "VmFlags: ", 9)) {
			snprintf(flags, sizeof(flags), "%.*s", (int)strcspn(line + 9, "\n"), line + 9);
		} else if (inside && sscanf(line, "%39[^:]: %lu kB", key, &kb) == 2 && is_shown(key)) {
			say(" %s=%lu", key, kb);
		}
	}
	fclose(smaps);
	say("%sVmFlags=[%s]", answer[0] ? " " : "", flags);
}

/* ---------------------------------------------------------------- users of pages */

static int held[MAX_HELD][2], nr_held;

static long splice_to(int to, char *address)
{
	struct iovec range = { address, SMALL };

	return vmsplice(to, &range, 1, SPLICE_F_NONBLOCK);
}

static void play_hold(char *address, char **rest)
{
	(void)rest;
	if (nr_held == MAX_HELD)
		die("too many pipes are held");
	check(pipe(held[nr_held]), "pipe");
	say_number(splice_to(held[nr_held++][1], address));
}

static void drop(void)
{
	while (nr_held) {
		nr_held--;
		close(held[nr_held][0]);
		close(held[nr_held][1]);
	}
}

static void use_pipe(const char *user, char *address)
{
	char *content = content_of(address, !strcmp(user, "read_pipe") ? SMALL : 0);
	int ends[2];

	check(pipe(ends), "pipe");
	if (!strcmp(user, "vmsplice")) {
		say_number(splice_to(ends[1], address));
	} else if (!strcmp(user, "write_pipe")) {
		say_number(write(ends[1], address, SMALL));
	} else {
		if (write(ends[1], content, SMALL) != SMALL)
			die("pipe");
		say_number(read(ends[0], address, SMALL));
	}
	close(ends[0]);
	close(ends[1]);
}

static void use_process_vm(bool is_write, char *address)
{
	struct iovec local = { content_of(address, is_write ? SMALL : 0), SMALL };
	struct iovec remote = { address, SMALL };
	long (*call)(pid_t, const struct iovec *, unsigned long, const struct iovec *,
		     unsigned long, unsigned long) =
		is_write ? process_vm_writev : process_vm_readv;

	say_number(call(getpid(), &local, 1, &remote, 1, 0));
}

static void use_proc_mem(bool is_write, char *address)
{
	int fd = check(open("/proc/self/mem", O_RDWR), "/proc/self/mem");
	char buffer[SMALL];

	if (is_write)
		say_number(pwrite(fd, "Z", 1, (uintptr_t)address));
	else
		say_number(pread(fd, buffer, SMALL, (uintptr_t)address));
	close(fd);
}

static void use_odirect(bool is_read, char *address)
{
	if (!is_read) {
		say_number(pwrite(ram_disk, address, PAGE, 0));
		return;
	}
	if (pwrite(ram_disk, content_of(address, PAGE), PAGE, 0) != (long)PAGE)
		die("ram disk");
	say_number(pread(ram_disk, address, PAGE, 0));
}

static void use_uring(char *address)
{
	struct iovec range = { address, PAGE };
	long error = syscall(SYS_io_uring_register, uring, IORING_REGISTER_BUFFERS, &range, 1);

	say_ok(error);
	if (!error)
		syscall(SYS_io_uring_register, uring, IORING_UNREGISTER_BUFFERS, NULL, 0);
}

/* But for ptrace, which is the director's. */
static void play_gup(const char *user, char *address)
{
	if (!strcmp(user, "process_vm_readv") || !strcmp(user, "process_vm_writev"))
		use_process_vm(!strcmp(user, "process_vm_writev"), address);
	else if (!strcmp(user, "proc_mem_read") || !strcmp(user, "proc_mem_write"))
		use_proc_mem(!strcmp(user, "proc_mem_write"), address);
	else if (!strcmp(user, "odirect_write") || !strcmp(user, "odirect_read"))
		use_odirect(!strcmp(user, "odirect_read"), address);
	else if (!strcmp(user, "io_uring"))
		use_uring(address);
	else if (!strcmp(user, "futex"))
		say_number(syscall(SYS_futex, address, FUTEX_WAKE, 1, NULL, NULL, 0));
	else
		use_pipe(user, address);
}

/* ---------------------------------------------------------------- the actor */

static const struct {
	const char *name;
	void (*play)(char *address, char **rest);
} operations[] = {
	{ "read", play_read }, { "tail", play_tail }, { "write", play_write },
	{ "munmap", play_munmap }, { "mprotect", play_mprotect }, { "mremap", play_mremap },
	{ "mlock", play_mlock }, { "munlock", play_munlock }, { "madvise", play_madvise },
	{ "msync", play_msync }, { "mincore", play_mincore }, { "insert", play_insert },
	{ "state", play_state }, { "smaps", play_smaps }, { "hold", play_hold },
};

static void play_map(char **words)
{
	unsigned long nr = atol(words[3]);
	int share = !strcmp(words[2], "shared") ? MAP_SHARED : MAP_PRIVATE;
	void *address = mmap(reserve(nr), nr * PAGE, value_of(prots, words[1]), share | MAP_FIXED,
			     device, atol(words[4]) * PAGE);

	if (address == MAP_FAILED) {
		say_errno(errno);
		return;
	}
	areas[words[0][0] - 'A'] = (uintptr_t)address;
	say("ok");
}

/* Answers "pid N" for the director; in the child, 0. */
static int play_fork(void)
{
	long pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);

	if (pid < 0)
		say_errno(errno);
	else
		say("pid %ld", pid);
	return pid;
}

/* The director wants to write a word by ptrace, and to know what is there: its address and bytes. */
static void tell_word(char *address, bool with_content)
{
	uint64_t word = 0;

	if (with_content)
		memcpy(&word, content_of(address, WORD), WORD);
	say("%#lx %#lx", (unsigned long)address, (unsigned long)word);
}

static void play_line(char **words)
{
	if (!strcmp(words[0], "map")) {
		play_map(words + 1);
	} else if (!strcmp(words[0], "drop")) {
		drop();
		say("ok");
	} else if (!strcmp(words[0], "gup") && !strncmp(words[1], "ptrace", 6)) {
		tell_word(address_of(words + 2), !strcmp(words[1], "ptrace_poke"));
	} else if (!strcmp(words[0], "gup")) {
		play_gup(words[1], address_of(words + 2));
	} else {
		for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
			if (!strcmp(words[0], operations[i].name)) {
				operations[i].play(address_of(words + 1), words + 3);
				return;
			}
		}
		say("unknown operation");
	}
}

static void __attribute__((noreturn)) act(int process)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	char line[LINE], *words[MAX_WORDS];

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (;;) {
		receive_line(orders[process][0], line);
		split(line, words);
		answer[0] = 0;
		if (!strcmp(words[0], "fork")) {
			if (play_fork() == 0) {
				drop();	/* the parent's, which has them, too */
				if (has_dontfork)
					unmap_what_was_left_out();
				process = atoi(words[1]);
				strcpy(answer, "ok");
			}
		} else {
			play_line(words);
		}
		send_line(answers[1], answer);
	}
}

/* ---------------------------------------------------------------- the director */

static pid_t actors[MAX_PROCESSES];

static void end_actor(int process)
{
	kill(actors[process], SIGKILL);
	check(waitpid(actors[process], NULL, __WALL), "waitpid");
	actors[process] = 0;
}

static void end_scene(void)
{
	for (int i = 0; i < MAX_PROCESSES; i++)
		if (actors[i])
			end_actor(i);
}

static void begin_scene(char **words)
{
	struct mixmap_setup setup = {
		.vm = value_of(vms, words[2]), .hooks = value_of(hooks, words[3]),
	};
	const char *plan = words[1] + strlen("plan=");

	for (int i = 0; i < MIXMAP_NR_PAGES; i++)
		setup.plan[i] = plan[i % strlen(plan)];
	end_scene();
	check(ioctl(device, MIXMAP_SETUP, &setup), "setting up the device");
	actors[0] = check(fork(), "fork");
	if (!actors[0])
		act(0);
	say("ok");
}

static void ask(int process, const char *line)
{
	send_line(orders[process][1], line);
	receive_line(answers[0], answer);
}

/* Both the parent, by a pid, and the child, by ok, answer; in any order. */
static void start_actor(int parent, int child, const char *line)
{
	bool is_there = false;

	ask(parent, line);
	for (;;) {
		if (!strncmp(answer, "pid ", 4))
			actors[child] = atoi(answer + 4);
		else if (!strcmp(answer, "ok"))
			is_there = true;
		else
			return;	/* an errno */
		if (actors[child] && is_there)
			break;
		receive_line(answers[0], answer);
	}
	strcpy(answer, "ok");
}

/* The actor waits for a line meanwhile, and goes on waiting. */
static void trace(int process, const char *user, const char *line)
{
	pid_t pid = actors[process];
	unsigned long address, word;
	long error;

	ask(process, line);
	if (sscanf(answer, "%lx %lx", &address, &word) != 2)
		die("an actor said %s", answer);
	check(ptrace(PTRACE_ATTACH, pid, 0, 0), "ptrace");
	check(waitpid(pid, NULL, __WALL), "waitpid");
	errno = 0;
	if (!strcmp(user, "ptrace_poke"))
		error = ptrace(PTRACE_POKEDATA, pid, address, word);
	else
		error = ptrace(PTRACE_PEEKDATA, pid, address, 0) == -1 && errno ? -1 : 0;
	answer[0] = 0;
	say_ok(error);
	check(ptrace(PTRACE_DETACH, pid, 0, 0), "ptrace");
}

static void play_device(char **words)
{
	if (!strcmp(words[0], "device")) {
		begin_scene(words);
	} else if (!strcmp(words[0], "end")) {
		end_scene();
		say("ok");
	} else if (!strcmp(words[0], "zap")) {
		struct mixmap_zap zap = { atoi(words[1]), atoi(words[2]), atoi(words[3]) };

		say_ok(ioctl(device, MIXMAP_ZAP, &zap));
	} else if (!strcmp(words[0], "migrate")) {
		struct mixmap_migrate migrate = { atoi(words[1]), words[2][0] };

		say_ok(ioctl(device, MIXMAP_MIGRATE, &migrate));
	} else if (!strcmp(words[0], "page")) {
		struct mixmap_page page = { .page = atoi(words[1]) };

		check(ioctl(device, MIXMAP_PAGE, &page), "page");
		say("ref=%d mapc=%d", page.refcount, page.mapcount);
	} else if (!strcmp(words[0], "count")) {
		struct mixmap_counts counts;

		check(ioctl(device, MIXMAP_COUNTS, &counts), "count");
		say("faults=%u page_mkwrite=%u pfn_mkwrite=%u vm_open=%u vm_close=%u",
		    counts.faults, counts.page_mkwrite, counts.pfn_mkwrite, counts.opens,
		    counts.closes);
	} else {
		say("unknown operation");
	}
}

static void play(const char *line)
{
	char copy[LINE], *words[MAX_WORDS];
	const char *rest;
	int process;

	strcpy(copy, line);
	split(copy, words);
	answer[0] = 0;
	if (words[0][0] < '0' || words[0][0] > '9') {
		play_device(words);
		return;
	}
	process = atoi(words[0]);
	if (process >= MAX_PROCESSES || !actors[process]) {
		say("no such process");
		return;
	}
	rest = strchr(line, ' ') + 1;
	if (!strcmp(words[1], "fork")) {
		start_actor(process, atoi(words[2]) % MAX_PROCESSES, rest);
	} else if (!strcmp(words[1], "exit")) {
		end_actor(process);
		say("ok");
	} else if (!strcmp(words[1], "gup") && !strncmp(words[2], "ptrace", 6)) {
		trace(process, words[2], rest);
	} else {
		ask(process, rest);
	}
}

/* Bytes as they are, both ways: the other end is a program. */
static void make_console_raw(int console)
{
	struct termios mode;

	check(tcgetattr(console, &mode), "tcgetattr");
	cfmakeraw(&mode);
	mode.c_lflag |= ICANON;	/* a read gets a line */
	check(tcsetattr(console, TCSANOW, &mode), "tcsetattr");
}

static int set_up(void)
{
	struct io_uring_params params = {};
	int console;

	check(mount("proc", "/proc", "proc", 0, NULL), "mounting /proc");
	check(mount("dev", "/dev", "devtmpfs", 0, NULL), "mounting /dev");
	console = check(open("/dev/tty1", O_RDWR | O_NOCTTY), "/dev/tty1");
	make_console_raw(console);
	device = check(open("/dev/mixmap", O_RDWR), "/dev/mixmap");
	ram_disk = check(open("/dev/ram0", O_RDWR | O_DIRECT), "/dev/ram0");
	uring = check(syscall(SYS_io_uring_setup, 4, &params), "io_uring_setup");
	check(pipe(answers), "pipe");
	for (int i = 0; i < MAX_PROCESSES; i++)
		check(pipe(orders[i]), "pipe");
	return console;
}

int main(void)
{
	int console = set_up();
	char line[LINE];
	ssize_t size;

	dprintf(console, "ready\n");
	while ((size = check(read(console, line, sizeof(line) - 1), "reading a line")) > 0) {
		line[size] = 0;
		play(line);
		dprintf(console, "%s\n", answer);
	}
	return 0;	/* the console is closed: the kernel panics for want of init, and ends */
}
