// SPDX-License-Identifier: Apache-2.0
#include "train/format.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static Short scaled(double value, double step, const char *const units[], int count, const char *gap) {
    int unit = 0;
    while (unit + 1 < count && fabs(value) >= step * 0.9995) {
        value /= step;
        unit++;
    }
    Short out;
    int digits = unit == 0 && value == floor(value) ? 0
                 : fabs(value) < 9.995              ? 2
                 : fabs(value) < 99.95              ? 1
                                                    : 0;
    snprintf(out.text, sizeof out.text, "%.*f%s%s", digits, value, units[unit][0] ? gap : "", units[unit]);
    return out;
}

Short short_count(double value) {
    static const char *const units[] = {"", "k", "M", "B", "T"};
    return scaled(value, 1000, units, 5, " ");
}

Short short_rate(double value) {
    static const char *const units[] = {"", "k", "M", "B", "T"};
    return scaled(value, 1000, units, 5, "");
}

Short short_bytes(double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    return scaled(bytes, 1024, units, 5, " ");
}

Short short_duration(double seconds) {
    Short out;
    int64_t s = (int64_t)(seconds + 0.5);
    if (!(seconds >= 0) || seconds > 1e9)
        snprintf(out.text, sizeof out.text, "?");
    else if (seconds < 9.995)
        snprintf(out.text, sizeof out.text, "%.*f s", seconds < 0.0995 ? 3 : 2, seconds);
    else if (s < 60)
        snprintf(out.text, sizeof out.text, "%d s", (int)s);
    else if (s < 3600)
        snprintf(out.text, sizeof out.text, "%dm%02ds", (int)(s / 60), (int)(s % 60));
    else if (s < 86400)
        snprintf(out.text, sizeof out.text, "%dh%02dm", (int)(s / 3600), (int)(s / 60 % 60));
    else
        snprintf(out.text, sizeof out.text, "%dd%02dh", (int)(s / 86400), (int)(s / 3600 % 24));
    return out;
}

Status duration_parse(const char *text, double *seconds) {
    static const char units[] = "smhd";
    static const double size[] = {1, 60, 3600, 86400};
    *seconds = 0;
    for (const char *at = text; *at || at == text;) {
        char *end;
        double value = strtod(at, &end);
        const char *unit = *end ? strchr(units, *end) : NULL;
        if (end == at || !(value >= 0) || (*end && !unit))
            FAIL(ERR_CONFIG, "'%s' is not a duration: write 90s, 50m, 3h50m or 1d", text);
        *seconds += value * (unit ? size[unit - units] : 1);
        at = unit ? end + 1 : end;
    }
    return OK;
}

Short utc_now(const char *format) {
    Short out;
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    REQUIRE(strftime(out.text, sizeof out.text, format, &tm) > 0, "time format %s", format);
    return out;
}
