#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <fstream>
#include <string_view>
#include <system_error>

#include "cellvision/error.hpp"
#include "cellvision/writers.hpp"
#include "files/folders.hpp"

namespace cellvision {

namespace fs = std::filesystem;

namespace {

std::string number_part() {
    static std::atomic<unsigned> next{0};
    return "." + find_host() + "-" + std::to_string(::getpid()) + "-" + std::to_string(next++) + ".part";
}

/// Reads a number off the front of `text`; false where there is none, or where `end` does not follow, which goes too.
bool take_number(std::string_view& text, std::string_view end, unsigned& number) {
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
    const bool is_found = error == std::errc() && text.starts_with(end);
    text.remove_prefix(is_found ? end.size() : 0);
    return is_found;
}

/// Whether a file bears a name of `number_part` of this machine, and of a process that is no more.
bool is_left(const std::string& name, const std::string& host) {
    const std::string start = "." + host + "-";
    if (!name.starts_with(start)) {
        return false;
    }
    std::string_view text = std::string_view(name).substr(start.size());
    unsigned process = 0;
    unsigned number = 0;
    const bool is_part = take_number(text, "-", process) && take_number(text, ".part", number) && text.empty();
    return is_part && process > 0 && process < 1'000'000'000 && ::kill(static_cast<pid_t>(process), 0) != 0 &&
           errno == ESRCH;
}

/// Removes what killed processes of this machine have left, in Python too. Only what has not been written to for a day:
/// containers can have one name and not see each other's processes.
void remove_leftovers(const fs::path& folder) {
    const std::string host = find_host();
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
        if (is_left(entry.path().filename().string(), host)) {
            const fs::file_time_type written = entry.last_write_time(ignored);
            if (!ignored && fs::file_time_type::clock::now() - written > std::chrono::hours(24)) {
                fs::remove(entry.path(), ignored);  // another process can be faster
            }
        }
    }
}

[[noreturn]] void fail_unwritable(const fs::path& folder, const std::string& why) {
    fail(ErrorKind::config, "cannot write to the folder " + folder.string() + " (" + why + ")",
         "one that can be made and written", "another folder");
}

}  // namespace

std::string find_host() {
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    return host.data();
}

void check_out_folder(const std::vector<fs::path>& images, const fs::path& out_dir) {
    std::error_code ignored;
    const fs::path target = fs::weakly_canonical(out_dir, ignored);
    for (const fs::path& image : images) {
        if (fs::weakly_canonical(image, ignored).parent_path() == target) {
            fail(ErrorKind::config,
                 "the folder for results, " + out_dir.string() + ", is that of " + image.filename().string(),
                 "another folder, so that no input is overwritten or taken for a result",
                 "--out " + (out_dir / "cells").string());
        }
    }
}

void check_no_results(const fs::path& out_dir) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(out_dir, ignored)) {
        const std::string name = entry.path().filename().string();
        if (name == "cells.csv" || name == "fields.csv" || name == "summary.json" || name.ends_with("_labels.tif")) {
            fail(ErrorKind::config,
                 "the folder for results, " + out_dir.string() + ", holds those of another run (" + name + ")",
                 "a folder for each run, so that its tables list all that lies beside them",
                 "another --out, or remove it");
        }
    }
}

void make_folder(const fs::path& folder) {
    const bool is_new = !fs::exists(folder);
    if (!is_new && !fs::is_directory(folder)) {
        fail(ErrorKind::config, folder.string() + " is a file", "a folder", "another name");
    }
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) {
        fail_unwritable(folder, error.message());
    }
    const fs::path probe = folder / number_part();
    const bool is_writable = std::ofstream(probe).good();
    fs::remove(probe, error);
    if (!is_writable) {
        if (is_new) {
            fs::remove(folder, error);
        }
        fail_unwritable(folder, "no file can be made there");
    }
    remove_leftovers(folder);
}

StagedFiles::StagedFiles(fs::path folder) : folder_(std::move(folder)), is_new_(!fs::exists(folder_)) {
    make_folder(folder_);
}

StagedFiles::~StagedFiles() {
    if (!staged_.empty()) {
        discard();
    }
}

fs::path StagedFiles::path(const std::string& name) {
    const fs::path final_path = folder_ / name;
    if (fs::is_directory(final_path)) {
        fail(ErrorKind::config, final_path.string() + " is a folder", "the name of a file", "a file inside it");
    }
    const fs::path part = folder_ / number_part();
    staged_[part] = final_path;
    return part;
}

void StagedFiles::commit() {
    while (!staged_.empty()) {
        const auto first = staged_.begin();
        std::error_code error;
        fs::rename(first->first, first->second, error);
        if (error) {
            fail_unwritable(folder_, error.message());
        }
        staged_.erase(first);
    }
}

void StagedFiles::discard() noexcept {
    std::error_code ignored;
    for (const auto& [part, final_path] : staged_) {
        fs::remove(part, ignored);
    }
    staged_.clear();
    if (is_new_) {
        ::rmdir(folder_.c_str());  // not where others have put files there
    }
}

}  // namespace cellvision
