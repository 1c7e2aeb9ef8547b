#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "cellvision/error.hpp"
#include "cellvision/writers.hpp"
#include "files/folders.hpp"

namespace cellvision {

namespace fs = std::filesystem;

namespace {

constexpr const char* lock_name = ".cellvision.lock";

std::string read_owner(const fs::path& path) {
    std::ifstream stream(path);
    std::string owner;
    std::getline(stream, owner);
    return !fs::exists(path) ? "just ended" : owner.empty() ? "just begun" : owner;
}

/// Whether a path leads to this open file.
bool is_same(const fs::path& path, int file) {
    struct stat named {};
    struct stat open {};
    return ::stat(path.c_str(), &named) == 0 && ::fstat(file, &open) == 0 && named.st_dev == open.st_dev &&
           named.st_ino == open.st_ino;
}

void write_owner(int file) {
    const std::string owner = "process " + std::to_string(::getpid()) + " of " + find_host() + "\n";
    if (::ftruncate(file, 0) != 0 || ::write(file, owner.data(), owner.size()) < 0) {
        throw std::system_error(errno, std::generic_category());
    }
}

/// The open lock file, held by this process; std::system_error of EWOULDBLOCK where another holds it.
int take_lock(const fs::path& path) {
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        throw std::system_error(errno, std::generic_category());
    }
    try {
        if (::flock(file, LOCK_EX | LOCK_NB) != 0) {
            throw std::system_error(errno, std::generic_category());
        }
        if (!is_same(path, file)) {  // it was another's until just now, who has removed it
            throw std::system_error(EWOULDBLOCK, std::generic_category());
        }
        write_owner(file);
    } catch (...) {
        ::close(file);
        throw;
    }
    return file;
}

}  // namespace

FolderClaim::FolderClaim(fs::path folder) : folder_(std::move(folder)), is_new_(!fs::exists(folder_)) {
    make_folder(folder_);
    const fs::path path = folder_ / lock_name;
    try {
        lock_ = take_lock(path);
        check_no_results(folder_);
    } catch (const std::system_error& error) {
        const std::string why = read_owner(path);
        release();
        if (error.code().value() == EWOULDBLOCK) {
            fail(ErrorKind::config,
                 "another run is at work in the folder for results, " + folder_.string() + " (" + why + ")",
                 "a folder for each run, so that its tables list all that lies beside them", "another --out");
        }
        fail(ErrorKind::config, "cannot lock " + path.string() + " (" + error.code().message() + ")",
             "a file system with locks", "another --out");
    } catch (...) {
        release();
        throw;
    }
}

FolderClaim::~FolderClaim() { release(); }

void FolderClaim::release() noexcept {
    if (lock_ >= 0) {
        ::unlink((folder_ / lock_name).c_str());  // before it is let go: afterwards it can be another's
        ::close(lock_);
        lock_ = -1;
    }
    if (is_new_) {
        ::rmdir(folder_.c_str());  // not where there are results
    }
}

}  // namespace cellvision
