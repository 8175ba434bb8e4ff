// SPDX-License-Identifier: Apache-2.0
// What tokenizer.json says. Every key is either used, or known to change no id, or refused.
#include "data/tokenizer_json.h"
#ifdef FLOE_PCRE2
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_IDS = 1 << 24, VALUE_BYTES = 60 };

typedef struct {
    const char *path;
    JsonTokenizer *tokenizer;
    json_t *vocab; // borrowed
} Reader;

static Status refuse(const Reader *reader, const char *key, const json_t *value, const char *hint) {
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    int bytes = text ? (int)strlen(text) : 0;
    Status status = status_fail(ERR_CONFIG, __FILE__, __LINE__, "%s: %s = %.*s%s is not supported; %s",
                                reader->path, key, bytes < VALUE_BYTES ? bytes : VALUE_BYTES,
                                text ? text : "(missing)", bytes > VALUE_BYTES ? "…" : "", hint);
    free(text);
    return status;
}

static const char only_bpe[] =
    "floe reads tokenizers of the byte-level BPE kind here; for others look for a SentencePiece model "
    "(tokenizer.model) and use sentencepiece:FILE";

// An object without keys beyond the NULL-terminated list.
static Status expect_keys(const Reader *reader, const char *where, json_t *object, const char *const keys[]) {
    if (!json_is_object(object)) return refuse(reader, where, object, "an object is expected");
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        int i = 0;
        while (keys[i] && strcmp(keys[i], key) != 0) i++;
        if (keys[i]) continue;
        char full[128];
        snprintf(full, sizeof full, "%s.%s", where, key);
        return refuse(reader, full, value, "the key is unknown");
    }
    return OK;
}

static bool is_absent(const json_t *value) {
    return !value || json_is_null(value);
}

// A key that must be true or false, or is absent and has its default.
static Status read_flag(const Reader *reader, const char *where, const json_t *object, const char *key,
                        bool absent, bool *out) {
    const json_t *value = json_object_get(object, key);
    *out = value ? json_is_true(value) : absent;
    char full[128];
    snprintf(full, sizeof full, "%s.%s", where, key);
    if (value && !json_is_boolean(value)) return refuse(reader, full, value, "true or false is expected");
    return OK;
}

static bool has_type(const json_t *object, const char *type) {
    const char *text = json_string_value(json_object_get(object, "type"));
    return text && strcmp(text, type) == 0;
}

// ---- vocabulary and merges

// The byte that a character stands for: printable ones of Latin-1 for themselves, U+0100 … for the others in
// order (the table of GPT-2). -1: none.
static int byte_of_character(unsigned character) {
    if ((character >= 33 && character <= 126) || (character >= 161 && character <= 172) ||
        (character >= 174 && character <= 255))
        return (int)character;
    if (character < 256 || character >= 256 + 68) return -1;
    unsigned index = character - 256; // among 0 … 32, 127 … 160 and 173
    return index <= 32 ? (int)index : index <= 66 ? (int)(index - 33 + 127) : 173;
}

// text (valid UTF-8) as bytes in out, which has room for as many as text has; -1: it has another character.
static int64_t bytes_of_text(const char *text, size_t bytes, char *out) {
    const unsigned char *data = (const unsigned char *)text;
    int64_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned character = data[i];
        if (character >= 0xc0 && character < 0xe0)
            character = (character & 31) << 6 | (data[++i] & 63);
        else if (character >= 0x80)
            return -1;
        int byte = byte_of_character(character);
        if (byte < 0) return -1;
        out[count++] = (char)byte;
    }
    return count;
}

static Status find_vocab_size(Reader *reader, const json_t *added) {
    int64_t largest = -1;
    const char *key;
    json_t *value;
    size_t i;
    json_object_foreach(reader->vocab, key, value) {
        int64_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= MOST_IDS || *key == 0) {
            char full[128];
            snprintf(full, sizeof full, "model.vocab.\"%.80s\"", key);
            return refuse(reader, full, value, "a token's id is expected");
        }
        if (id > largest) largest = id;
    }
    json_array_foreach(added, i, value) {
        const json_t *number = json_object_get(value, "id");
        int64_t id = json_is_integer(number) ? json_integer_value(number) : -1;
        if (id < 0 || id >= MOST_IDS) return refuse(reader, "added_tokens[].id", value, "an id is expected");
        if (id > largest) largest = id;
    }
    reader->tokenizer->vocab = (int)(largest + 1);
    return OK;
}

// Tokens with characters that stand for no byte are never made from bytes; they are decoded as they are.
static Status read_vocab(Reader *reader) {
    const char *key;
    json_t *value;
    Status status = OK;
    json_object_foreach(reader->vocab, key, value) {
        size_t bytes = strlen(key);
        char *text = malloc(bytes);
        REQUIRE(text, "out of memory");
        int32_t id = (int32_t)json_integer_value(value);
        int64_t count = bytes_of_text(key, bytes, text);
        bool good = count < 0 ? bpe_add_token(reader->tokenizer->bpe, id, key, (int64_t)bytes, false)
                              : bpe_add_token(reader->tokenizer->bpe, id, text, count, true);
        free(text);
        if (!good) {
            char full[128];
            snprintf(full, sizeof full, "model.vocab.\"%.80s\"", key);
            status = refuse(reader, full, value, "another token has this id");
            break;
        }
    }
    return status;
}

// The two texts of a merge, "a b" or ["a", "b"].
static bool merge_texts(const json_t *merge, const char *text[2], size_t bytes[2]) {
    if (json_is_array(merge)) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *part = json_array_get(merge, i);
            text[i] = json_string_value(part);
            bytes[i] = json_string_length(part);
        }
        return json_array_size(merge) == 2 && text[0] && text[1];
    }
    const char *whole = json_string_value(merge), *space = whole ? strchr(whole, ' ') : NULL;
    if (!space || strchr(space + 1, ' ')) return false;
    text[0] = whole;
    bytes[0] = (size_t)(space - whole);
    text[1] = space + 1;
    bytes[1] = strlen(space + 1);
    return true;
}

static bool read_merge(Bpe *bpe, const json_t *merge, int32_t rank) {
    const char *part[2];
    size_t bytes[2];
    if (!merge_texts(merge, part, bytes)) return false;
    char *text = malloc(bytes[0] + bytes[1] + 1);
    REQUIRE(text, "out of memory");
    int64_t left = bytes_of_text(part[0], bytes[0], text);
    int64_t right = left < 0 ? -1 : bytes_of_text(part[1], bytes[1], text + left);
    int32_t id[3] = {-1, -1, -1};
    if (left > 0 && right > 0) {
        id[0] = bpe_find(bpe, text, left);
        id[1] = bpe_find(bpe, text + left, right);
        id[2] = bpe_find(bpe, text, left + right);
    }
    free(text);
    if (id[0] < 0 || id[1] < 0 || id[2] < 0) return false;
    bpe_add_merge(bpe, id[0], id[1], id[2], rank);
    return true;
}

static Status read_merges(const Reader *reader, const json_t *merges) {
    size_t i;
    json_t *merge;
    if (!json_is_array(merges)) return refuse(reader, "model.merges", merges, only_bpe);
    json_array_foreach(merges, i, merge) {
        if (read_merge(reader->tokenizer->bpe, merge, (int32_t)i)) continue;
        char key[64];
        snprintf(key, sizeof key, "model.merges[%zu]", i);
        return refuse(reader, key, merge,
                      "two texts are expected, both and what they join to must be in model.vocab");
    }
    return OK;
}

static Status check_model(const Reader *reader, json_t *model) {
    static const char *const keys[] = {"type",
                                       "dropout",
                                       "unk_token", // never used: every byte has a token
                                       "fuse_unk",
                                       "continuing_subword_prefix",
                                       "end_of_word_suffix",
                                       "byte_fallback",
                                       "ignore_merges",
                                       "vocab",
                                       "merges",
                                       NULL};
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *type = json_object_get(model, "type");
    if (type && !has_type(model, "BPE")) return refuse(reader, "model.type", type, only_bpe);
    TRY(expect_keys(reader, "model", model, keys));
    if (!json_is_object(reader->vocab)) return refuse(reader, "model.vocab", reader->vocab, only_bpe);
    const json_t *dropout = json_object_get(model, "dropout");
    if (!is_absent(dropout) && (!json_is_number(dropout) || json_number_value(dropout) != 0))
        return refuse(reader, "model.dropout", dropout, "set it to null");
    for (int i = 0; i < 2; i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        char full[64];
        snprintf(full, sizeof full, "model.%s", affixes[i]);
        if (!is_absent(affix) && (!json_is_string(affix) || json_string_length(affix) > 0))
            return refuse(reader, full, affix, only_bpe);
    }
    bool fallback;
    TRY(read_flag(reader, "model", model, "byte_fallback", false, &fallback));
    if (fallback) return refuse(reader, "model.byte_fallback", json_true(), only_bpe);
    return OK;
}

static Status finish_model(const Reader *reader, const json_t *model) {
    bool whole;
    TRY(read_flag(reader, "model", model, "ignore_merges", false, &whole));
    TRY(read_merges(reader, json_object_get(model, "merges")));
    int missing = bpe_finish(reader->tokenizer->bpe, whole);
    if (missing >= 0)
        FAIL(ERR_CONFIG, "%s: model.vocab has no token for byte 0x%02x; %s", reader->path, missing, only_bpe);
    return OK;
}

// ---- added tokens

static Status read_added_token(const Reader *reader, json_t *entry) {
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
    const char *content = json_string_value(json_object_get(entry, "content"));
    int64_t bytes = (int64_t)json_string_length(json_object_get(entry, "content"));
    int32_t id = (int32_t)json_integer_value(json_object_get(entry, "id"));
    bool flag, normalized, special;
    TRY(expect_keys(reader, "added_tokens[]", entry, keys));
    if (!content || bytes == 0) return refuse(reader, "added_tokens[].content", entry, "a text is expected");
    for (int i = 0; i < 3; i++) {
        TRY(read_flag(reader, "added_tokens[]", entry, unsupported[i], false, &flag));
        if (!flag) continue;
        char full[64];
        snprintf(full, sizeof full, "added_tokens[].%s", unsupported[i]);
        return refuse(reader, full, entry, "only tokens that match as they are");
    }
    TRY(read_flag(reader, "added_tokens[]", entry, "special", false, &special));
    TRY(read_flag(reader, "added_tokens[]", entry, "normalized", !special, &normalized));
    const json_t *known = json_object_get(reader->vocab, content);
    if (known ? json_integer_value(known) != id
              : !bpe_add_token(reader->tokenizer->bpe, id, content, bytes, false))
        return refuse(reader, "added_tokens[]", entry, "model.vocab or another added token contradicts it");
    if (json_tokenizer_find(reader->tokenizer, content) < 0)
        added_tokens_add(&reader->tokenizer->added[normalized], id, content, bytes);
    return OK;
}

static Status read_added_tokens(const Reader *reader, const json_t *list) {
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) TRY(read_added_token(reader, entry));
    for (i = 0; i < 2; i++) added_tokens_order(&reader->tokenizer->added[i]);
    return OK;
}

// ---- what comes before and after the model

static Status check_normalizer(const Reader *reader, const json_t *normalizer) {
    const json_t *parts = json_object_get(normalizer, "normalizers");
    if (is_absent(normalizer)) return OK;
    if (has_type(normalizer, "Sequence") && json_is_array(parts) && json_array_size(parts) == 0) return OK;
    return refuse(reader, "normalizer", normalizer,
                  "floe reads tokenizers that take text as it is (normalizer null)");
}

static Status read_split(const Reader *reader, json_t *split) {
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const pattern_keys[] = {"Regex", NULL};
    bool invert;
    TRY(expect_keys(reader, "pre_tokenizer", split, keys));
    TRY(read_flag(reader, "pre_tokenizer", split, "invert", false, &invert));
    json_t *pattern = json_object_get(split, "pattern");
    TRY(expect_keys(reader, "pre_tokenizer.pattern", pattern, pattern_keys));
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const json_t *behavior = json_object_get(split, "behavior");
    const char *name = json_string_value(behavior);
    bool isolated = name && strcmp(name, "Isolated") == 0, removed = name && strcmp(name, "Removed") == 0;
    if (!regex) return refuse(reader, "pre_tokenizer.pattern.Regex", pattern, "a text is expected");
    if (!isolated && !removed)
        return refuse(reader, "pre_tokenizer.behavior", behavior, "only Isolated, or Removed with invert");
    if (invert != removed) // "Removed" of what does not match keeps the matches alone
        return refuse(reader, "pre_tokenizer.invert", json_object_get(split, "invert"),
                      "Isolated goes with false, Removed with true");
    if (splitter_add(reader->tokenizer->splitter, regex, removed) == OK) return OK;
    char *problem = strdup(status_text());
    REQUIRE(problem, "out of memory");
    Status status = status_fail(ERR_CONFIG, __FILE__, __LINE__, "%s: pre_tokenizer.pattern.Regex: %s",
                                reader->path, problem);
    free(problem);
    return status;
}

static const char *const byte_level_keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};

static Status read_byte_level(const Reader *reader, json_t *level, bool first) {
    static const char words[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"; // GPT-2's
    bool regex, space;
    TRY(expect_keys(reader, "pre_tokenizer", level, byte_level_keys));
    TRY(read_flag(reader, "pre_tokenizer", level, "add_prefix_space", true, &space));
    TRY(read_flag(reader, "pre_tokenizer", level, "use_regex", true, &regex));
    if (space && !first)
        return refuse(reader, "pre_tokenizer.add_prefix_space", level, "not after another pre-tokenizer");
    reader->tokenizer->leading_space = space;
    if (regex) TRY(splitter_add(reader->tokenizer->splitter, words, false));
    return OK;
}

static Status read_pre_tokenizer(const Reader *reader, json_t *pre) {
    static const char *const keys[] = {"type", "pretokenizers", NULL};
    if (has_type(pre, "ByteLevel")) return read_byte_level(reader, pre, true);
    if (!has_type(pre, "Sequence")) return refuse(reader, "pre_tokenizer", pre, only_bpe);
    TRY(expect_keys(reader, "pre_tokenizer", pre, keys));
    json_t *list = json_object_get(pre, "pretokenizers");
    size_t count = json_array_size(list);
    for (size_t i = 0; i + 1 < count; i++) {
        json_t *part = json_array_get(list, i);
        if (!has_type(part, "Split"))
            return refuse(reader, "pre_tokenizer.pretokenizers", part, "only Split before the last one");
        TRY(read_split(reader, part));
    }
    json_t *last = count > 0 ? json_array_get(list, count - 1) : NULL;
    if (!has_type(last, "ByteLevel"))
        return refuse(reader, "pre_tokenizer.pretokenizers", last ? last : list,
                      "the last one must be ByteLevel");
    return read_byte_level(reader, last, count == 1);
}

// The special tokens before and after the text.
static Status read_template(const Reader *reader, json_t *processor) {
    static const char *const keys[] = {"type", "single", "pair", "special_tokens", NULL};
    TRY(expect_keys(reader, "post_processor", processor, keys));
    JsonTokenizer *tokenizer = reader->tokenizer;
    size_t i;
    json_t *part;
    bool after = false;
    json_array_foreach(json_object_get(processor, "single"), i, part) {
        const char *name = json_string_value(json_object_get(json_object_get(part, "SpecialToken"), "id"));
        if (json_object_get(part, "Sequence")) {
            after = true;
            continue;
        }
        int32_t id = name ? json_tokenizer_find(tokenizer, name) : -1;
        if (id < 0) return refuse(reader, "post_processor.single", part, "no added token has this text");
        int *special = after ? &tokenizer->eos : &tokenizer->bos;
        if (*special >= 0)
            return refuse(reader, "post_processor.single", part, "at most one token before and one after");
        *special = id;
    }
    return OK;
}

// floe puts bos and eos itself; ByteLevel trims offsets here and changes no id.
static Status read_post_processor(const Reader *reader, json_t *post) {
    static const char *const keys[] = {"type", "processors", NULL};
    if (is_absent(post)) return OK;
    if (has_type(post, "ByteLevel")) return expect_keys(reader, "post_processor", post, byte_level_keys);
    if (has_type(post, "TemplateProcessing")) return read_template(reader, post);
    if (!has_type(post, "Sequence"))
        return refuse(reader, "post_processor", post, "only ByteLevel and TemplateProcessing");
    TRY(expect_keys(reader, "post_processor", post, keys));
    size_t i;
    json_t *part;
    json_array_foreach(json_object_get(post, "processors"), i, part) {
        if (has_type(part, "Sequence"))
            return refuse(reader, "post_processor.processors", part, "a Sequence in a Sequence");
        TRY(read_post_processor(reader, part));
    }
    return OK;
}

// ---- files

static Status check_rest(const Reader *reader, json_t *root) {
    static const char *const keys[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    const char *version = json_string_value(json_object_get(root, "version"));
    TRY(expect_keys(reader, "the file", root, keys));
    if (!version || strcmp(version, "1.0") != 0)
        return refuse(reader, "version", json_object_get(root, "version"),
                      "this is not a tokenizer.json 1.0");
    for (int i = 1; i <= 2; i++) {
        const json_t *value = json_object_get(root, keys[i]);
        if (!is_absent(value)) return refuse(reader, keys[i], value, "set it to null");
    }
    json_t *decoder = json_object_get(root, "decoder");
    if (!has_type(decoder, "ByteLevel")) return refuse(reader, "decoder", decoder, only_bpe);
    return expect_keys(reader, "decoder", decoder, byte_level_keys);
}

static Status read_root(Reader *reader, json_t *root) {
    json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    TRY(check_rest(reader, root));
    if (!json_is_object(model)) return refuse(reader, "model", model, only_bpe);
    reader->vocab = json_object_get(model, "vocab");
    TRY(check_model(reader, model));
    if (!is_absent(added) && !json_is_array(added))
        return refuse(reader, "added_tokens", added, "a list is expected");
    TRY(find_vocab_size(reader, added));
    reader->tokenizer->bpe = bpe_create(reader->tokenizer->vocab);
    TRY(read_vocab(reader));
    TRY(read_added_tokens(reader, added));
    TRY(finish_model(reader, model));
    TRY(check_normalizer(reader, json_object_get(root, "normalizer")));
    TRY(read_pre_tokenizer(reader, json_object_get(root, "pre_tokenizer")));
    return read_post_processor(reader, json_object_get(root, "post_processor"));
}

static Status load_object(json_t **out, const char *path) {
    json_error_t error;
    if (access(path, R_OK) != 0)
        FAIL(ERR_CONFIG, "%s: no such file; give the tokenizer.json of the model's folder", path);
    *out = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!*out)
        FAIL(ERR_CONFIG, "%s:%d: not JSON: %s; was it stored or copied whole?", path, error.line, error.text);
    if (json_is_object(*out)) return OK;
    json_decref(*out);
    FAIL(ERR_CONFIG, "%s: not a JSON object", path);
}

Status json_tokenizer_read(JsonTokenizer *tokenizer, const char *path) {
    Reader reader = {path, tokenizer, NULL};
    json_t *root = NULL;
    TRY(load_object(&root, path));
    Status status = read_root(&reader, root);
    json_decref(root);
    return status;
}

// A token's name is a text or an object with its text as content.
static Status read_named_token(const Reader *reader, const json_t *config, const char *key, int *id) {
    const json_t *value = json_object_get(config, key);
    if (is_absent(value)) return OK;
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    *id = text ? json_tokenizer_find(reader->tokenizer, text) : -1;
    if (*id < 0) return refuse(reader, key, value, "tokenizer.json has no such added token");
    return OK;
}

Status json_tokenizer_read_config(JsonTokenizer *tokenizer, const char *path) {
    const Reader reader = {path, tokenizer, NULL};
    json_t *config = NULL;
    TRY(load_object(&config, path));
    Status status = read_named_token(&reader, config, "bos_token", &tokenizer->bos);
    if (status == OK) status = read_named_token(&reader, config, "eos_token", &tokenizer->eos);
    if (status == OK) status = read_named_token(&reader, config, "pad_token", &tokenizer->pad);
    json_decref(config);
    return status;
}
#endif
