// SPDX-License-Identifier: Apache-2.0
// The launch, with this program as front end ("front …"), as ranks ("rank …"), and as the test that watches
// both.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core/clock.h"
#include "tools/launch.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
// after the others
#include <cmocka.h>

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){ms / 1000, (ms % 1000) * 1000000L}, NULL);
}

// ---- a rank

static volatile sig_atomic_t stop_asked, save_asked;

static void on_signal(int number) {
    if (number == SIGUSR1)
        save_asked = 1;
    else
        stop_asked = 1;
}

static void write_pids(int rank) { // of this rank and of mpirun
    char path[64];
    snprintf(path, sizeof path, "rank-%d.tmp", rank);
    FILE *file = fopen(path, "w");
    fprintf(file, "%d %d\n", (int)getpid(), (int)getppid());
    fclose(file);
    char final[64];
    snprintf(final, sizeof final, "rank-%d.pid", rank);
    rename(path, final);
}

// Works until it is asked to stop, like a training run.
static int rank_work(int rank) {
    signal(SIGUSR1, on_signal);
    signal(SIGUSR2, on_signal);
    MPI_Init(NULL, NULL);
    write_pids(rank);
    while (!stop_asked) {
        sleep_ms(10);
        if (save_asked && rank == 0) {
            printf("saved\n");
            fflush(stdout);
        }
        save_asked = 0;
    }
    MPI_Finalize();
    return ERR_TEMPORARY;
}

static int rank_fail(int rank) {
    sleep_ms(rank == 1 ? 50 : 250);
    fprintf(stderr, "[rank %d] error: reason %d\n", rank, rank);
    if (rank != 1) sleep_ms(100);
    return rank == 1 ? 7 : 9;
}

static int rank_main(const char *what) {
    int rank = atoi(getenv("OMPI_COMM_WORLD_RANK")), unused;
    if (launch_ranks(&(LaunchOptions){0}, 0, NULL, &unused)) return 99;
    if (strcmp(what, "work") == 0) return rank_work(rank);
    if (strcmp(what, "fail") == 0) return rank_fail(rank);
    if (strcmp(what, "deaf") == 0) {
        write_pids(rank);
        for (;;) sleep_ms(1000);
    }
    if (strcmp(what, "crash") == 0 && rank == 0) abort();
    if (strcmp(what, "talk") == 0 && rank == 0)
        printf("\tstep 1 | loss 2.5\nprogress %s color %s threads %s\n", getenv("FLOE_PROGRESS"),
               getenv("FLOE_COLOR"), getenv("OMP_NUM_THREADS"));
    return 0;
}

// front RANKS WHAT [nosave]
static int front_main(int argc, char **argv) {
    LaunchOptions options = {.ranks = atoi(argv[2]), .nothing_to_save = argc > 4, .progress = "always"};
    char *rank_argv[] = {"rank", argv[3], NULL};
    int exit_code;
    if (!launch_ranks(&options, 2, rank_argv, &exit_code)) return 98;
    return exit_code;
}

// ---- the tests

typedef struct {
    pid_t pid;
    double started;
} Front;

// Runs in a fresh folder; its output goes to the files out and err.
static Front start(const char *ranks, const char *what, const char *more) {
    char folder[] = "/tmp/floe-launch-XXXXXX", self[4096];
    assert_non_null(mkdtemp(folder));
    assert_int_equal(chdir(folder), 0);
    self[readlink("/proc/self/exe", self, sizeof self - 1)] = 0;
    Front front = {.started = clock_seconds()};
    front.pid = fork();
    if (front.pid == 0) {
        dup2(open("out", O_WRONLY | O_CREAT, 0600), 1);
        dup2(open("err", O_WRONLY | O_CREAT, 0600), 2);
        execl(self, self, "front", ranks, what, more, NULL);
        _exit(97);
    }
    return front;
}

static char *text_of(const char *path) {
    static char text[65536];
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return text;
}

static bool exists(pid_t pid) {
    return kill(pid, 0) == 0;
}

typedef struct {
    int rank[2], mpirun;
} Pids;

static Pids wait_for_ranks(void) {
    Pids pids = {0};
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "rank-%d.pid", i);
        for (int tries = 0; access(path, R_OK) && tries < 2000; tries++) sleep_ms(10);
        assert_int_equal(sscanf(text_of(path), "%d %d", &pids.rank[i], &pids.mpirun), 2);
    }
    return pids;
}

static int wait_for_front(Front front) {
    int status;
    assert_int_equal(waitpid(front.pid, &status, 0), front.pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int jobs_in_shared_memory(void) {
    DIR *folder = opendir("/dev/shm");
    char own[32];
    int count = 0;
    snprintf(own, sizeof own, "floe-%u-", (unsigned)getuid());
    for (const struct dirent *entry; folder && (entry = readdir(folder));)
        count += strncmp(entry->d_name, own, strlen(own)) == 0 && strstr(entry->d_name, getenv("TEST_FRONT"));
    if (folder) closedir(folder);
    return count;
}

static void remember(Front front) { // whose folder in /dev/shm to look for
    char text[32];
    snprintf(text, sizeof text, "-%d-", (int)front.pid);
    setenv("TEST_FRONT", text, 1);
}

// Ranks and mpirun are gone, and nothing stays, within 2 seconds.
static void expect_gone(Pids pids, double since) {
    while (clock_seconds() - since < 2 &&
           (exists(pids.rank[0]) || exists(pids.rank[1]) || exists(pids.mpirun) || jobs_in_shared_memory()))
        sleep_ms(10);
    assert_false(exists(pids.rank[0]));
    assert_false(exists(pids.rank[1]));
    assert_false(exists(pids.mpirun));
    assert_int_equal(jobs_in_shared_memory(), 0);
}

static void test_lines_pass_unchanged(void **state) {
    (void)state;
    Front front = start("2", "talk", NULL);
    assert_int_equal(wait_for_front(front), 0);
    assert_string_equal(text_of("out"), "\tstep 1 | loss 2.5\nprogress 1 color 0 threads 1\n");
    assert_string_equal(text_of("err"), "");
}

static void test_first_failure_alone(void **state) {
    (void)state;
    Front front = start("3", "fail", NULL);
    assert_int_equal(wait_for_front(front), 7);
    assert_string_equal(text_of("err"), "[rank 1] error: reason 1\n");
}

static void test_crash_is_explained(void **state) {
    (void)state;
    Front front = start("2", "crash", NULL);
    assert_int_equal(wait_for_front(front), 128 + SIGABRT);
    assert_non_null(strstr(text_of("err"), "signal 6"));
}

static void test_first_signal_saves(void **state) {
    (void)state;
    const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR2};
    for (int i = 0; i < 4; i++) {
        Front front = start("2", "work", NULL);
        remember(front);
        Pids pids = wait_for_ranks();
        kill(front.pid, numbers[i]);
        assert_int_equal(wait_for_front(front), ERR_TEMPORARY);
        assert_string_equal(text_of("err"), "");
        expect_gone(pids, clock_seconds());
    }
}

static bool holds_term(pid_t pid) { // the front end reads its signals from a descriptor
    char path[64], line[256];
    unsigned long long mask = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) sscanf(line, "SigBlk: %llx", &mask);
    if (file) fclose(file);
    return mask >> (SIGTERM - 1) & 1;
}

static void test_early_signal_waits_for_ranks(void **state) {
    (void)state;
    for (int ms = 0; ms <= 400; ms += 100) {
        Front front = start("2", "work", NULL);
        while (!holds_term(front.pid)) sleep_ms(1); // the front end itself is there, its ranks are not
        sleep_ms(ms);
        kill(front.pid, SIGTERM);
        assert_int_equal(wait_for_front(front), ERR_TEMPORARY);
    }
}

static void test_second_signal_ends(void **state) {
    (void)state;
    Front front = start("2", "deaf", NULL);
    remember(front);
    Pids pids = wait_for_ranks();
    kill(front.pid, SIGTERM);
    sleep_ms(300);
    assert_true(exists(pids.rank[0]));
    double since = clock_seconds();
    kill(front.pid, SIGINT);
    assert_int_equal(wait_for_front(front), 128 + SIGINT);
    expect_gone(pids, since);
    assert_string_equal(text_of("err"), "");
}

static void test_nothing_to_save(void **state) {
    (void)state;
    Front front = start("2", "deaf", "nosave");
    remember(front);
    Pids pids = wait_for_ranks();
    double since = clock_seconds();
    kill(front.pid, SIGINT);
    assert_int_equal(wait_for_front(front), 128 + SIGINT);
    expect_gone(pids, since);
}

static void test_usr1_saves_and_goes_on(void **state) {
    (void)state;
    Front front = start("2", "work", NULL);
    Pids pids = wait_for_ranks();
    kill(front.pid, SIGUSR1);
    for (int tries = 0; tries < 300 && !strstr(text_of("out"), "saved\n"); tries++) sleep_ms(10);
    assert_string_equal(text_of("out"), "saved\n");
    assert_true(exists(pids.rank[0]) && exists(pids.rank[1]));
    kill(front.pid, SIGUSR2);
    assert_int_equal(wait_for_front(front), ERR_TEMPORARY);
}

static void test_front_is_killed(void **state) {
    (void)state;
    Front front = start("2", "work", NULL);
    remember(front);
    Pids pids = wait_for_ranks();
    assert_int_equal(jobs_in_shared_memory(), 1);
    double since = clock_seconds();
    kill(front.pid, SIGKILL);
    assert_int_equal(wait_for_front(front), -SIGKILL);
    expect_gone(pids, since);
}

static void test_mpirun_is_killed(void **state) {
    (void)state;
    const int numbers[] = {SIGKILL, SIGTERM, SIGSEGV};
    for (int i = 0; i < 3; i++) {
        Front front = start("2", "deaf", NULL);
        remember(front);
        Pids pids = wait_for_ranks();
        double since = clock_seconds();
        kill(pids.mpirun, numbers[i]);
        assert_int_not_equal(wait_for_front(front), 0);
        expect_gone(pids, since);
    }
}

// Without front end and keeper only the ranks' own watch is left, and the rest is for
// launch_clean_shared_memory.
static void test_all_guards_are_killed(void **state) {
    (void)state;
    Front front = start("2", "work", NULL);
    remember(front);
    Pids pids = wait_for_ranks();
    char command[128];
    snprintf(command, sizeof command, "kill -9 $(ps -o pid= --ppid %d) %d", (int)front.pid, (int)front.pid);
    double since = clock_seconds();
    assert_int_equal(system(command), 0); // keeper, mpirun and front end
    assert_int_equal(wait_for_front(front), -SIGKILL);
    while (clock_seconds() - since < 2 && (exists(pids.rank[0]) || exists(pids.rank[1]))) sleep_ms(10);
    assert_false(exists(pids.rank[0]) || exists(pids.rank[1]));
    assert_int_equal(jobs_in_shared_memory(), 1);
    assert_true(launch_clean_shared_memory(false) >= 1);
    assert_true(launch_clean_shared_memory(true) >= 1);
    assert_int_equal(jobs_in_shared_memory(), 0);
}

static void test_mpirun_is_missing(void **state) {
    (void)state;
    setenv("FLOE_MPIRUN", "/nowhere/mpirun", 1);
    Front front = start("2", "talk", NULL);
    assert_int_equal(wait_for_front(front), ERR_RUNTIME);
    assert_string_equal(text_of("err"), "error: /nowhere/mpirun was not found; install openmpi-bin, set "
                                        "FLOE_MPIRUN to its path, or use -n 1\n");
    unsetenv("FLOE_MPIRUN");
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "rank") == 0) return rank_main(argv[2]);
    if (argc > 3 && strcmp(argv[1], "front") == 0) return front_main(argc, argv);
    unsetenv("OMPI_COMM_WORLD_SIZE");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_pass_unchanged),
        cmocka_unit_test(test_first_failure_alone),
        cmocka_unit_test(test_crash_is_explained),
        cmocka_unit_test(test_first_signal_saves),
        cmocka_unit_test(test_early_signal_waits_for_ranks),
        cmocka_unit_test(test_second_signal_ends),
        cmocka_unit_test(test_nothing_to_save),
        cmocka_unit_test(test_usr1_saves_and_goes_on),
        cmocka_unit_test(test_front_is_killed),
        cmocka_unit_test(test_mpirun_is_killed),
        cmocka_unit_test(test_all_guards_are_killed),
        cmocka_unit_test(test_mpirun_is_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
