//go:build ignore

// calls measures libvirt API calls over libvirt.so, so that no start of a
// virsh process is in the figures. Times are medians in microseconds.
//
//	calls cycle URI XML N        define, start, destroy, undefine
//	calls crun BUNDLE N          crun create in a scope of systemd-run, start; delete
//	calls fill URI PREFIX XML N  define N domains; %s in the file is the name
//	calls empty URI PREFIX       undefine them
//	calls list URI N             listAllDomains
//	calls first URI              connect and list, once
//	calls setmem URI NAME N      change the memory of a running one
//	calls times N COMMAND…       a command; %d in a word is another number each time
//	calls domstats URI N         all statistics of all that run
//	calls byhand N GLOB          the files of cgroups that these come from
//	calls getinfo URI NAME CONNECTIONS SECONDS   calls/s and p99
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <glob.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void fail(const char *what) {
	const char *why = virGetLastErrorMessage();
	fprintf(stderr, "calls: %s: %s\n", what, why ? why : "");
	exit(1);
}

static void quiet(void *data, virErrorPtr err) { (void)data, (void)err; }

static int ascending(const void *a, const void *b) {
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static double quantile(double *v, size_t n, double q) {
	qsort(v, n, sizeof *v, ascending);
	return v[(size_t)(q * (n - 1) + 0.5)];
}

static char *slurp(const char *path) {
	FILE *f = fopen(path, "r");
	char *text = calloc(1, 65536);
	if (!f || !text || !fread(text, 1, 65535, f))
		fail(path);
	fclose(f);
	return text;
}

static virConnectPtr dial(const char *uri) {
	virConnectPtr c = virConnectOpen(uri);
	if (!c)
		fail(uri);
	return c;
}

static void cycle(const char *uri, const char *path, int n) {
	char *xml = slurp(path);
	double *t[4];
	virConnectPtr c = dial(uri);
	for (int k = 0; k < 4; k++)
		t[k] = calloc(n, sizeof(double));
	// The first round warms up and is not counted.
	for (int i = -1; i < n; i++) {
		double a = now();
		virDomainPtr d = virDomainDefineXML(c, xml);
		if (!d)
			fail("define");
		double b = now();
		if (virDomainCreate(d) < 0)
			fail("start");
		double e = now();
		usleep(300000); // let init come up: both are destroyed idle
		double f = now();
		if (virDomainDestroy(d) < 0)
			fail("destroy");
		double g = now();
		if (virDomainUndefine(d) < 0)
			fail("undefine");
		double h = now();
		virDomainFree(d);
		if (i >= 0) {
			t[0][i] = b - a;
			t[1][i] = e - b;
			t[2][i] = g - f;
			t[3][i] = h - g;
		}
	}
	printf("define %.0f\nstart %.0f\ndestroy %.0f\nundefine %.0f\n", quantile(t[0], n, .5),
	       quantile(t[1], n, .5), quantile(t[2], n, .5), quantile(t[3], n, .5));
	virConnectClose(c);
}

static void run(char **argv) {
	pid_t pid;
	int status;
	posix_spawn_file_actions_t fds;
	posix_spawn_file_actions_init(&fds);
	posix_spawn_file_actions_addopen(&fds, 0, "/dev/null", 0, 0);
	posix_spawn_file_actions_addopen(&fds, 1, "/dev/null", 1, 0);
	if (posix_spawnp(&pid, argv[0], &fds, NULL, argv, environ) || waitpid(pid, &status, 0) < 0 || status)
		fail(argv[0]);
	posix_spawn_file_actions_destroy(&fds);
}

static void bare(char *bundle, int n) {
	double *start = calloc(n, sizeof(double)), *end = calloc(n, sizeof(double));
	for (int i = -1; i < n; i++) {
		double a = now();
		run((char *[]){"systemd-run", "--scope", "--quiet", "--slice=machine.slice", "crun",
		               "--cgroup-manager=disabled", "create", "--bundle", bundle, "bare", NULL});
		run((char *[]){"crun", "start", "bare", NULL});
		double b = now();
		usleep(300000);
		double c = now();
		run((char *[]){"crun", "delete", "--force", "bare", NULL});
		double d = now();
		if (i >= 0) {
			start[i] = b - a;
			end[i] = d - c;
		}
	}
	printf("start %.0f\ndestroy %.0f\n", quantile(start, n, .5), quantile(end, n, .5));
}

static void fill(const char *uri, const char *prefix, const char *path, int n) {
	char *form = slurp(path), name[64], xml[70000];
	virConnectPtr c = dial(uri);
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof name, "%s%d", prefix, i);
		snprintf(xml, sizeof xml, form, name);
		virDomainPtr d = virDomainDefineXML(c, xml);
		if (!d)
			fail(name);
		virDomainFree(d);
	}
	virConnectClose(c);
}

static int listing(virConnectPtr c, virDomainPtr **all) {
	int n = virConnectListAllDomains(c, all, 0);
	if (n < 0)
		fail("list");
	return n;
}

static void drop(virDomainPtr *all, int n) {
	for (int i = 0; i < n; i++)
		virDomainFree(all[i]);
	free(all);
}

static void empty(const char *uri, const char *prefix) {
	virDomainPtr *all;
	virConnectPtr c = dial(uri);
	int n = listing(c, &all);
	for (int i = 0; i < n; i++)
		if (!strncmp(virDomainGetName(all[i]), prefix, strlen(prefix)))
			virDomainUndefine(all[i]);
	drop(all, n);
	virConnectClose(c);
}

static void list(const char *uri, int n) {
	double *t = calloc(n, sizeof(double));
	virDomainPtr *all;
	virConnectPtr c = dial(uri);
	drop(all, listing(c, &all));
	int count = 0;
	for (int i = 0; i < n; i++) {
		double a = now();
		count = listing(c, &all);
		t[i] = now() - a;
		drop(all, count);
	}
	printf("list %.0f\ndomains %d\n", quantile(t, n, .5), count);
	virConnectClose(c);
}

// memory is another size each time, in KiB, that fits and differs.
static unsigned long memory(int i) { return 50000 + i % 2 * 4096 + i * 4; }

static void setmem(const char *uri, const char *name, int n) {
	double *t = calloc(n, sizeof(double));
	virConnectPtr c = dial(uri);
	virDomainPtr d = virDomainLookupByName(c, name);
	for (int i = -1; i < n; i++) {
		double a = now();
		if (!d || virDomainSetMemoryFlags(d, memory(i + 1), VIR_DOMAIN_AFFECT_LIVE) < 0)
			fail(name);
		if (i >= 0)
			t[i] = now() - a;
	}
	printf("setmem %.0f\n", quantile(t, n, .5));
	virConnectClose(c);
}

static void times(int n, char **argv) {
	double *t = calloc(n, sizeof(double));
	char *words[32] = {0}, text[31][256];
	for (int i = -1; i < n; i++) {
		for (int k = 0; argv[k] && k < 31; k++) {
			snprintf(text[k], sizeof text[k], argv[k], (int)memory(i + 1));
			words[k] = text[k];
		}
		double a = now();
		run(words);
		if (i >= 0)
			t[i] = now() - a;
	}
	printf("command %.0f\n", quantile(t, n, .5));
}

static void domstats(const char *uri, int n) {
	double *t = calloc(n, sizeof(double));
	virDomainStatsRecordPtr *all;
	virConnectPtr c = dial(uri);
	int count = 0;
	for (int i = -1; i < n; i++) {
		double a = now();
		count = virConnectGetAllDomainStats(c, 0, &all, VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE);
		if (count < 0)
			fail("domstats");
		if (i >= 0)
			t[i] = now() - a;
		virDomainStatsRecordListFree(all);
	}
	printf("domstats %.0f\nrunning %d\n", quantile(t, n, .5), count);
	virConnectClose(c);
}

static void byhand(int n, const char *pattern) {
	static const char *files[] = {
		"cpu.stat", "cpu.pressure", "io.stat", "io.pressure", "memory.current", "memory.peak", "memory.min", "memory.low",
		"memory.high", "memory.max", "memory.swap.current", "memory.swap.peak", "memory.swap.max", "memory.stat",
		"memory.events", "memory.swap.events", "memory.pressure", "pids.current", "pids.peak", "pids.max", "pids.events",
		"cgroup.stat", "cgroup.max.descendants",
	};
	double *t = calloc(n, sizeof(double));
	char path[4096], text[65536];
	size_t count = 0;
	for (int i = -1; i < n; i++) {
		double a = now();
		glob_t g;
		if (glob(pattern, 0, NULL, &g))
			fail(pattern);
		count = g.gl_pathc;
		for (size_t k = 0; k < count; k++)
			for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
				snprintf(path, sizeof path, "%s/%s", g.gl_pathv[k], files[f]);
				int fd = open(path, O_RDONLY);
				if (fd < 0)
					continue;
				while (read(fd, text, sizeof text) > 0)
					;
				close(fd);
			}
		globfree(&g);
		if (i >= 0)
			t[i] = now() - a;
	}
	printf("byhand %.0f\ncgroups %zu\n", quantile(t, n, .5), count);
}

struct client {
	pthread_t thread;
	virDomainPtr domain;
	double end, *t;
	size_t n;
};

enum { most = 200000 };

static void *ask(void *arg) {
	struct client *c = arg;
	virDomainInfo info;
	for (double a = now(), b; a < c->end && c->n < most; a = b) {
		if (virDomainGetInfo(c->domain, &info) < 0)
			fail("getinfo");
		b = now();
		c->t[c->n++] = b - a;
	}
	return NULL;
}

static void getinfo(const char *uri, const char *name, int connections, double seconds) {
	struct client *c = calloc(connections, sizeof *c);
	double *all = calloc((size_t)connections * most, sizeof *all); // touched as used
	for (int i = 0; i < connections; i++) {
		c[i].domain = virDomainLookupByName(dial(uri), name);
		c[i].t = calloc(most, sizeof(double));
		if (!c[i].domain)
			fail(name);
	}
	double begin = now();
	for (int i = 0; i < connections; i++) {
		c[i].end = begin + seconds * 1e6;
		pthread_create(&c[i].thread, NULL, ask, &c[i]);
	}
	size_t n = 0;
	for (int i = 0; i < connections; i++) {
		pthread_join(c[i].thread, NULL);
		memcpy(all + n, c[i].t, c[i].n * sizeof(double));
		n += c[i].n;
	}
	double took = now() - begin;
	printf("rate %.0f\np99 %.0f\n", n / took * 1e6, quantile(all, n, .99));
}

int main(int argc, char **argv) {
	virInitialize();
	virSetErrorFunc(NULL, quiet);
	const char *what = argc > 2 ? argv[1] : "";
	if (!strcmp(what, "cycle") && argc == 5)
		cycle(argv[2], argv[3], atoi(argv[4]));
	else if (!strcmp(what, "crun") && argc == 4)
		bare(argv[2], atoi(argv[3]));
	else if (!strcmp(what, "fill") && argc == 6)
		fill(argv[2], argv[3], argv[4], atoi(argv[5]));
	else if (!strcmp(what, "empty") && argc == 4)
		empty(argv[2], argv[3]);
	else if (!strcmp(what, "list") && argc == 4)
		list(argv[2], atoi(argv[3]));
	else if (!strcmp(what, "first") && argc == 3)
		list(argv[2], 1);
	else if (!strcmp(what, "setmem") && argc == 5)
		setmem(argv[2], argv[3], atoi(argv[4]));
	else if (!strcmp(what, "times") && argc > 3)
		times(atoi(argv[2]), argv + 3);
	else if (!strcmp(what, "domstats") && argc == 4)
		domstats(argv[2], atoi(argv[3]));
	else if (!strcmp(what, "byhand") && argc == 4)
		byhand(atoi(argv[2]), argv[3]);
	else if (!strcmp(what, "getinfo") && argc == 6)
		getinfo(argv[2], argv[3], atoi(argv[4]), atof(argv[5]));
	else {
		fprintf(stderr, "calls: the uses are at the top of calls.c\n");
		return 2;
	}
	return 0;
}
