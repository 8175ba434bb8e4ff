// SPDX-License-Identifier: Apache-2.0
#include "data/sentencepiece.h"
#include <cstdlib>
#include <cstring>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <string>
#include <unordered_map>
#include <vector>

struct PieceModel {
    sentencepiece::SentencePieceProcessor processor;
    bool by_lines = false; // a text's ids are those of its lines, one after the other
};

namespace {

char *copy_of(const std::string &text) {
    char *copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (!copy) std::abort();
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = 0;
    return copy;
}

char *problem(const sentencepiece::util::Status &status) {
    return status.ok() ? nullptr : copy_of(status.ToString());
}

using Processor = sentencepiece::SentencePieceProcessor;

// The library's time grows faster than the text, so that long texts are better encoded by lines. That changes
// nothing if no piece reaches beyond a line end, which must stay itself in the text, and no line gets
// something put before it.
bool encodes_by_lines(const Processor &processor) {
    for (int id = 0; id < processor.GetPieceSize(); id++) {
        const std::string &piece = processor.IdToPiece(id);
        if (piece.find('\n') != std::string::npos && piece != "\n") return false;
    }
    const std::string first = "a \n", second = "\n", third = " b\n";
    std::vector<int> whole, parts;
    for (const std::string &line : {first, second, third})
        for (int id : processor.EncodeAsIds(line)) parts.push_back(id);
    whole = processor.EncodeAsIds(first + second + third);
    for (int id : whole)
        if (processor.IsUnknown(id)) return false; // neighbours would become one
    return whole == parts && processor.DecodeIds(whole) == first + second + third;
}

class Lines : public sentencepiece::SentenceIterator {
  public:
    Lines(const PieceLine *line, int64_t lines) : line_(line), lines_(lines) {
        load();
    }
    bool done() const override {
        return at_ >= lines_;
    }
    void Next() override {
        ++at_;
        load();
    }
    const std::string &value() const override {
        return value_;
    }
    sentencepiece::util::Status status() const override {
        return sentencepiece::util::Status();
    }

  private:
    void load() {
        if (at_ < lines_) value_.assign(line_[at_].text, static_cast<size_t>(line_[at_].bytes));
    }
    const PieceLine *line_;
    int64_t lines_, at_ = 0;
    std::string value_;
};

} // namespace

char *piece_model_open(PieceModel **out, const char *path) {
    PieceModel *model = new PieceModel;
    char *text = problem(model->processor.Load(path));
    if (text) {
        delete model;
        model = nullptr;
    } else {
        model->by_lines = encodes_by_lines(model->processor);
    }
    *out = model;
    return text;
}

void piece_model_close(PieceModel *model) {
    delete model;
}
int piece_model_vocab(const PieceModel *model) {
    return model->processor.GetPieceSize();
}
int piece_model_bos(const PieceModel *model) {
    return model->processor.bos_id();
}
int piece_model_eos(const PieceModel *model) {
    return model->processor.eos_id();
}
int piece_model_pad(const PieceModel *model) {
    return model->processor.pad_id();
}

char *piece_model_encode(const PieceModel *model, const char *text, int64_t bytes, int32_t **tokens,
                         int64_t *count) {
    std::vector<int> ids, piece;
    const char *end = text + bytes;
    while (text < end) {
        const void *newline =
            model->by_lines ? std::memchr(text, '\n', static_cast<size_t>(end - text)) : nullptr;
        const char *next = newline ? static_cast<const char *>(newline) + 1 : end;
        char *error = problem(model->processor.Encode({text, static_cast<size_t>(next - text)}, &piece));
        if (error) return error;
        ids.insert(ids.end(), piece.begin(), piece.end());
        text = next;
    }
    *count = static_cast<int64_t>(ids.size());
    *tokens = static_cast<int32_t *>(std::malloc((ids.size() + 1) * sizeof(int32_t)));
    if (!*tokens) std::abort();
    for (size_t i = 0; i < ids.size(); i++) (*tokens)[i] = ids[i];
    return nullptr;
}

char *piece_model_decode(const PieceModel *model, const int32_t *tokens, int64_t count, char **text,
                         int64_t *bytes) {
    std::string out;
    char *error = problem(model->processor.Decode(std::vector<int>(tokens, tokens + count), &out));
    if (error) return error;
    *text = copy_of(out);
    *bytes = static_cast<int64_t>(out.size());
    return nullptr;
}

char *piece_model_train(const PieceLine *line, int64_t lines, int vocab, char **model, int64_t *bytes) {
    // Text comes back as it went in: no normalisation, spaces kept; bytes stand for what has no piece, line
    // ends too.
    const std::unordered_map<std::string, std::string> settings = {
        {"model_type", "bpe"},
        {"vocab_size", std::to_string(vocab)},
        {"byte_fallback", "true"},
        {"character_coverage", "0.9995"},
        {"normalization_rule_name", "identity"},
        {"add_dummy_prefix", "false"},
        {"remove_extra_whitespaces", "false"},
        {"allow_whitespace_only_pieces", "true"},
        {"split_digits", "true"},
        {"unk_id", "0"},
        {"bos_id", "1"},
        {"eos_id", "2"},
        {"pad_id", "3"},
        {"max_sentence_length", "1000000"},
        {"num_threads", "4"}, // it is written into the model
        {"minloglevel", "2"},
    };
    Lines input(line, lines);
    std::string out;
    char *error = problem(sentencepiece::SentencePieceTrainer::Train(settings, &input, &out));
    if (error) return error;
    *model = copy_of(out);
    *bytes = static_cast<int64_t>(out.size());
    return nullptr;
}
