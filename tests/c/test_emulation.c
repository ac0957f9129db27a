/* emulation: a use of tiles that would fault on a processor with AMX ends the process. */
#include "test.h"

#include "simd/intrinsics.h"

#if defined(AIMO_EMULATE_ISA)
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* Bytes of the configuration: lengths of rows, numbers of rows. */
enum { RESERVED = 2, COLUMNS = 16, ROWS = 48 };

/* Palette 1 and eight full tiles. */
static void fill_config(uint8_t config[64])
{
    memset(config, 0, 64);
    config[0] = 1;
    for (int t = 0; t < 8; t++) {
        config[COLUMNS + 2 * t] = 64;
        config[ROWS + t] = 16;
    }
}

/* Loads two tiles, multiplies and stores, with byte `at` of the configuration changed. */
static void multiply(int at, uint8_t value, bool configure)
{
    _Alignas(64) uint8_t memory[16][64] = {{0}}, config[64];
    fill_config(config);
    if (at >= 0)
        config[at] = value;
    if (configure)
        _tile_loadconfig(config);
    _tile_zero(0);
    _tile_loadd(1, memory, 64);
    _tile_loadd(2, memory, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, memory, 64);
    _tile_release();
}

static bool aborts(int at, uint8_t value, bool configure)
{
    const pid_t child = fork();
    if (child == 0) {
        fclose(stderr); /* where the reason is printed */
        multiply(at, value, configure);
        _exit(0);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
           WTERMSIG(status) == SIGABRT;
}

TEST(emulation_of_tiles_refuses_what_the_processor_refuses)
{
    CHECK(!aborts(-1, 0, true));
    CHECK(aborts(-1, 0, false));       /* not configured */
    CHECK(aborts(0, 0, true));         /* palette 0 */
    CHECK(aborts(0, 2, true));         /* no such palette */
    CHECK(aborts(RESERVED, 1, true));  /* reserved */
    CHECK(aborts(ROWS + 8, 16, true)); /* a ninth tile */
    CHECK(aborts(ROWS, 17, true));     /* too many rows */
    CHECK(aborts(COLUMNS, 65, true));  /* too many bytes */
    CHECK(aborts(ROWS, 0, true));      /* bytes without rows */
    CHECK(aborts(ROWS, 8, true));      /* sums and x differ in rows */
    CHECK(aborts(COLUMNS, 32, true));  /* sums and weights differ in columns */
    CHECK(aborts(ROWS + 2, 8, true));  /* x and weights differ in k */
}
#endif
