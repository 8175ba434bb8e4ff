// SPDX-License-Identifier: Apache-2.0
// The account of consumed samples, counted as they are trained on, and checked against the formula.
#pragma once
#include "data/loader.h"

typedef struct {
    int stages, sources;
    int64_t *samples; // [stages][sources]
} Ledger;

Ledger ledger_create(const Loader *loader);
void ledger_free(Ledger *ledger);
void ledger_count(Ledger *ledger, const Loader *loader, int64_t first_sample, int64_t count); // of all ranks
// What the formula says for samples 0 … samples − 1; ERR_DATA names stage, source and both numbers where the
// ledger differs.
Ledger ledger_expected(const Loader *loader, int64_t samples);
Status ledger_check(const Ledger *ledger, const Loader *loader, int64_t samples);
char *ledger_json(const Ledger *ledger,
                  const Loader *loader); // {"stages":[{"stage":1,"tokens":{"prose":…},"epochs":{…}}]}
Status ledger_parse(Ledger *ledger, const Loader *loader, const char *json);
void ledger_print(const Ledger *ledger, const Loader *loader); // a table on stdout
