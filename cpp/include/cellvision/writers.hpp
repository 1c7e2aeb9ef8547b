#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cellvision/cells.hpp"
#include "cellvision/image.hpp"
#include "cellvision/manifest.hpp"

namespace cellvision {

/// Throws Error where results would go to the folder of an image.
void check_out_folder(const std::vector<std::filesystem::path>& images, const std::filesystem::path& out_dir);

/// Throws Error where a folder holds results already: tables do not list the label images of another run.
void check_no_results(const std::filesystem::path& out_dir);

/// Holds a folder for the results of one run as long as it lives; it is made if need be, and goes again if it stays
/// empty.
///
/// Two runs that both find it empty would each write tables without the other's rows. So a run holds the system's lock
/// (flock) on `.cellvision.lock` in it, which says whose it is, as Python's claim_folder does. The lock ends with its
/// process, however that ends.
class FolderClaim {
public:
    /// Throws Error where another run holds the folder, where it holds results, or where it cannot be made or written.
    explicit FolderClaim(std::filesystem::path folder);
    ~FolderClaim();
    FolderClaim(const FolderClaim&) = delete;
    FolderClaim& operator=(const FolderClaim&) = delete;

private:
    void release() noexcept;

    std::filesystem::path folder_;
    bool is_new_;
    int lock_ = -1;
};

/// Files of one folder that get their names together, on `commit`. Until then nothing is visible under a final name;
/// what was not committed is removed again, with the folder if it was made for it.
class StagedFiles {
public:
    /// Makes the folder if it does not exist; throws Error where it cannot be made or written.
    explicit StagedFiles(std::filesystem::path folder);
    ~StagedFiles();
    StagedFiles(const StagedFiles&) = delete;
    StagedFiles& operator=(const StagedFiles&) = delete;

    /// Where to write what will be called `name`.
    [[nodiscard]] std::filesystem::path path(const std::string& name);
    /// Gives all files their names.
    void commit();
    /// Removes what was written.
    void discard() noexcept;

private:
    std::filesystem::path folder_;
    bool is_new_;
    std::map<std::filesystem::path, std::filesystem::path> staged_;  ///< final name by where it is written
};

/// Writes a label image as a deflate-compressed TIFF, uint16 where the labels fit, else uint32, as Python does.
///
/// @param pixel_size_um written as the resolution, or nothing.
void write_label_image(const std::filesystem::path& path, const LabelImage& labels,
                       std::optional<double> pixel_size_um);

/// Writes (height, width, 3) bytes as a PNG.
void write_png(const std::filesystem::path& path, const std::vector<unsigned char>& rgb, int height, int width);

/// The picture to look at, (height, width, 3) bytes.
struct Picture {
    int height = 0;
    int width = 0;
    std::vector<unsigned char> rgb;
};

/// The channels as one colour composite, each cell outlined in the colour of its class; larger images than 3000 px are
/// shrunk by a whole number. The picture of Python's overlay, with the same counts below in plainer letters.
///
/// @param image raw counts, channels in the manifest's order.
[[nodiscard]] Picture draw_overlay(const Image& image, const Cells& cells, const std::vector<Channel>& channels);

/// ``cells.csv`` (a row per cell) and ``fields.csv`` (a row per image) as Python writes them, and ``summary.json``, of
/// one run; they appear together, on `commit`, if any image was added.
class ResultTables {
public:
    ResultTables(const std::filesystem::path& folder, const Manifest& manifest);

    /// Adds the rows of one image. `seconds` goes to the summary: what each step took, by name.
    void add(const std::string& name, const Cells& cells, const std::map<std::string, double>& seconds = {});
    /// Closes the tables and gives all three files their names. `run` goes to the summary: facts of the run, by name.
    void commit(const std::map<std::string, std::string>& run = {});

private:
    void open(std::ofstream& stream, const std::string& name);

    StagedFiles files_;
    std::vector<std::string> classes_;
    std::vector<std::string> channels_;
    std::string kind_;
    bool has_viability_;
    std::ofstream cells_;
    std::ofstream fields_;
    std::string summary_;
    int images_ = 0;
};

/// A number with nine digits, as Python's f"{value:.9g}", in every locale.
[[nodiscard]] std::string format_number(double value);

/// The viability of a field in words, e.g. "viability 90.0 % (69.9 to 97.2)".
[[nodiscard]] std::string format_viability(const Cells& cells);

}  // namespace cellvision
